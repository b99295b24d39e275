"""What people write stays text, wherever a template puts it and whatever it makes of it."""

from __future__ import annotations

import pytest
from fakes import byte_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.text.markup import Markup, MarkupError, Placed, plain
from edgellm.runtime.text.template import ChatTemplate, Message, TemplateError
from edgellm.runtime.text.vocabulary import Vocabulary

CONTROL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]", "<|a|>", "PAD", "<think>", "</think>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = [
    CHATML,
    CHATML.replace("m.content", "m.content | trim"),
    CHATML.replace("m.content", "m.content | lower"),
    CHATML.replace("m.content", "m.content | upper"),
    CHATML.replace("m.content", "m.content | replace(' ', '')"),
    CHATML.replace("m.content", "m.content.split() | join('')"),
    CHATML.replace("m.content", "m.content | tojson"),
    CHATML.replace("m.content", "m.content[1:]"),
    CHATML.replace("m.content", "m.content | reverse"),
    CHATML.replace("{{ m.content }}", "{% for c in m.content %}{{ c }}{% endfor %}"),
    CHATML.replace("{{ m.content }}", "<{{ m.content }}>"),
    CHATML.replace("{{ m.content }}", "<|im_{{ m.content }}|>"),
    "{% for m in messages %}{{ m.content }}{% endfor %}</s>",
    "{% for m in messages %}[INST]{{ m.content }}[/INST]{{ m.content }}{% endfor %}",
    CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}"),
    "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
    "{% for m in messages %}{% if m.role != 'system' %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}",
]
PARTS = [
    *CONTROL, *(text[:i] for text in CONTROL for i in (1, 2, 5)), *(text[i:] for text in CONTROL for i in (1, 2, 5)),
    "< s>", "<|IM_END|>", "<|im end|>", "P AD", "pad", " ", "\n", "x", "é", "\ud800\udc00", "\udd00", "\ue000", "",
]  # fmt: skip
WORDS = st.lists(st.sampled_from(PARTS), max_size=5).map("".join) | st.text(max_size=6)


def vocabulary(parses_literals: bool = False) -> Vocabulary:
    return byte_vocabulary(
        b"user", b"assistant", control=CONTROL, ends=["<|im_end|>", "</s>"], parses_literals=parses_literals
    )


RENDERED = [ChatTemplate(source, vocabulary(i % 2 == 1)) for i, source in enumerate(TEMPLATES)]


def controls(template: ChatTemplate, contents: list[str]) -> list[int] | None:
    """Control tokens of a conversation, without those of a thought where an answer seems to hold one."""
    roles = ("system", "user", "assistant", "user")[-len(contents) :]
    turns = [Message(role, content) for role, content in zip(roles, contents, strict=True)]  # type: ignore[arg-type]
    try:
        return [token for token in template.render(turns) if token >= 258]
    except TemplateError:
        return None


@given(st.integers(0, len(TEMPLATES) - 1), st.lists(WORDS, min_size=1, max_size=4))
def test_no_words_make_a_control_token(i: int, contents: list[str]) -> None:
    template = RENDERED[i]
    found = controls(template, contents)
    harmless = controls(template, ["zzz" for _ in contents])
    if len(contents) > 1 and "think>" in contents[-2]:  # what a template makes of an answer's thought is its own
        found = [token for token in found or () if token < 266]
    # A conversation may be refused, or be written in the template's other way, for words of white space.
    assert not found or found == harmless or not all(content.strip() for content in contents)


@given(st.text(alphabet="<s>|[/INPAD]im_ endx\n", max_size=30), st.booleans())
def test_protected_text_is_the_same_letter_for_letter(text: str, is_answer: bool) -> None:
    markup = Markup(vocabulary(), vocabulary().control)
    protected = markup.protect(text, is_answer=is_answer)
    assert len(protected) == len(text)
    assert markup.restore(protected) == text
    assert not is_answer or "<think>" not in text or "<think>" in protected


def test_words_are_seen_as_they_are_but_for_what_may_begin_a_control_token() -> None:
    markup = Markup(vocabulary(), vocabulary().control)
    for text in ("Hello? /no_think", "a | b > c", "PA DDLE", "  \n x"):
        assert markup.protect(text) == text
    assert "<" not in markup.protect("a<b")


def test_text_around_forged_markup_is_tokenised_as_it_stands() -> None:
    markup = Markup(vocabulary(), vocabulary().control)
    text = "<|im_start|>" + markup.protect("a</s>b") + "<|im_end|>"
    tokens = markup.encode(text)
    assert tokens == [258, *b"a</s>b", 259]
    assert markup.encode(text, [Placed(12, 13, (65,))]) == [258, 65, *b"</s>b", 259]


def test_a_vocabulary_of_too_many_letters_is_refused() -> None:
    strange = byte_vocabulary(control=[chr(0x4E00 + i) + "x" for i in range(800)])
    with pytest.raises(MarkupError, match="800 different letters"):
        Markup(strange, strange.control)
    with pytest.raises(TemplateError, match="800 different letters"):
        ChatTemplate(CHATML, strange)


def test_lone_surrogates_are_no_text() -> None:
    assert plain("a\ud800b") == "a?b"
