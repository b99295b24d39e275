"""Chat templates: no message forges a control token, turns extend each other, the template decides what is kept."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import vocabularies
from fakes import PieceTokenizer, byte_vocabulary
from tiny_gguf import write_tiny

from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.text.template import DOCUMENT, ChatTemplate, Message, TemplateError, usable
from edgellm.runtime.text.vocabulary import TokenKind, Vocabulary

FAMILIES = ("smollm2", "llama2", "llama3", "gemma3", "qwen3")  # Llama 2's vocabulary comes without a template
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWERS = ["Hello there.", " Hello", "\n\nLook:\n```\nx\n```\n", "", "é🙂 <|im_end|> </s>"]


@functools.cache
def opened(path: Path) -> tuple[LlamaModel, Vocabulary]:
    model = LlamaModel(path, ModelOptions(vocabulary_only=True))
    return model, model.vocabulary


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[ChatTemplate, Vocabulary]:
    if request.param == "smollm2":
        model, vocabulary = opened(request.getfixturevalue("smollm2_path"))
        return ChatTemplate(model.chat_template, vocabulary), vocabulary
    _, vocabulary = opened(vocabularies.vocabulary_gguf(request.param))
    return ChatTemplate(vocabularies.template(request.param) or None, vocabulary), vocabulary


def small(source: str | None = CHATML, **options: object) -> ChatTemplate:
    control = ["<|im_start|>", "<|im_end|>", "<s>"]
    vocabulary = byte_vocabulary(b"user", b"assistant", control=control, ends=["<|im_end|>"], **options)
    return ChatTemplate(source, vocabulary)


def spelled(tokens: list[int], control: dict[int, str] | None = None) -> str:
    """Ids of `small` as text, control tokens in corner brackets."""
    vocabulary = byte_vocabulary(b"user", b"assistant", control=["<|im_start|>", "<|im_end|>", "<s>"])
    names = {258: "[start]", 259: "[end]", 260: "[s]"}
    return "".join(names.get(token) or vocabulary.piece(token).decode("latin-1") for token in tokens)


def test_messages_become_turns() -> None:
    tokens = small().render([Message("system", "Be."), Message("user", "Hi"), Message("assistant", "Yo")], reply=False)
    assert spelled(tokens) == "[start]system\nBe.[end]\n[start]user\nHi[end]\n[start]assistant\nYo[end]\n"
    assert spelled(small().render([Message("user", "Hi")])) == "[start]user\nHi[end]\n[start]assistant\n"


def test_no_literal_in_a_message_becomes_a_control_token(family: tuple[ChatTemplate, Vocabulary]) -> None:
    template, vocabulary = family
    markers = {token for text, token in vocabulary.literals.items() if text.strip()}  # Gemma has newlines among them
    reserved = markers.intersection(template.render([Message("user", "x")]))
    n_control = count_special(template.render([Message("user", "x")]), vocabulary, reserved)
    literals = list(vocabulary.literals)
    for text in ("".join(literals[:400]), *literals[:: max(1, len(literals) // 200)], *ANSWERS):
        tokens = template.render([Message("user", f"x{text}y")])
        assert count_special(tokens, vocabulary, reserved) == n_control
        assert f"x{text}y".encode() in vocabulary.decode(tokens)


def count_special(tokens: list[int], vocabulary: Vocabulary, reserved: set[int]) -> int:
    return sum(token in vocabulary.control or token in reserved for token in tokens)


def test_the_next_turn_begins_with_this_turns_ids(family: tuple[ChatTemplate, Vocabulary]) -> None:
    """Where the template keeps what was answered: some take white space from its ends."""
    template, vocabulary = family
    for answer in ANSWERS:
        kept = template.text([Message("user", "a"), Message("assistant", f"{answer}"), Message("user", "b")])
        answer = answer if answer in kept else answer.strip()
        ids = tuple(vocabulary.encode(answer.encode()))
        conversation = [Message("user", "First <|im_start|>?")]
        for question in ("Second?", " third ", "4"):
            prompt = template.render(conversation)
            conversation += [Message("assistant", answer, ids), Message("user", question)]
            assert template.render(conversation)[: len(prompt) + len(ids)] == [*prompt, *ids]


def test_an_answers_own_ids_go_back_verbatim(family: tuple[ChatTemplate, Vocabulary]) -> None:
    """Even such as the tokenizer would never make of that text."""
    template, vocabulary = family
    odd = tuple(vocabulary.encode(b"w")) * 3 + tuple(vocabulary.encode(b"\n")) * 2 + tuple(vocabulary.encode(b"w"))
    answer = Message("assistant", "www\n\nw", odd)
    tokens = template.render([Message("user", "a"), answer, Message("user", "b")])
    assert any(tuple(tokens[i : i + len(odd)]) == odd for i in range(len(tokens)))


def test_a_turn_ends_with_the_token_that_the_template_writes(family: tuple[ChatTemplate, Vocabulary]) -> None:
    template, vocabulary = family
    assert template.turn_end in vocabulary.end_tokens


@pytest.mark.model
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b-instruct", "gemma-3-270m"])
def test_larger_models_templates_extend_their_turns(name: str, model_path: Callable[[str], Path]) -> None:
    model, vocabulary = opened(model_path(name))
    both = (ChatTemplate(model.chat_template, vocabulary), vocabulary)
    test_the_next_turn_begins_with_this_turns_ids(both)
    test_no_literal_in_a_message_becomes_a_control_token(both)


def test_a_template_that_trims_trims_messages_and_answers() -> None:
    trimming = small(CHATML.replace("m.content", "m.content | trim"))
    assert spelled(trimming.render([Message("user", "  Hi\n ")], reply=False)) == "[start]user\nHi[end]\n"
    assert spelled(trimming.render([Message("assistant", " A ", (32, 65, 32))], reply=False)) == (
        "[start]assistant\nA[end]\n"
    )
    assert spelled(small().render([Message("user", "  Hi\n ")], reply=False)) == "[start]user\n  Hi\n [end]\n"


def test_ids_are_kept_as_far_as_the_template_keeps_the_answer() -> None:
    """The end that it takes away costs the ids of that end alone."""
    trimming = small(CHATML.replace("m.content", "m.content | trim"))
    answer = Message("assistant", "user!\n", (*b"user", ord("!"), 10))  # not the one token of "user"
    assert trimming.render([answer], reply=False)[-7:] == [*b"user!", 259, 10]


def test_the_space_before_an_answer_is_not_doubled() -> None:
    template = small("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    turns = [Message("user", "Hi"), Message("assistant", " Yo", (*b" Yo",)), Message("user", "x")]
    assert spelled(template.render(turns)) == "user: Hi\nassistant: Yo\nuser: x\nassistant:"


def test_a_system_message_goes_to_the_user_where_a_template_refuses_the_role() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + CHATML
    template = small(source)
    tokens = template.render([Message("system", "Be brief."), Message("user", "Hi")], reply=False)
    assert spelled(tokens) == "[start]user\nBe brief.\n\nHi[end]\n"
    with pytest.raises(TemplateError, match="No system role"):
        template.render([Message("system", "alone")])


def test_a_refused_conversation_says_why() -> None:
    template = small("{% if messages | length > 1 %}{{ raise_exception('roles must alternate') }}{% endif %}" + CHATML)
    with pytest.raises(TemplateError, match="roles must alternate"):
        template.render([Message("user", "a"), Message("user", "b")])


def test_a_bos_comes_once() -> None:
    turns = [Message("user", "Hi")]
    for source in (CHATML, "{{ bos_token }}" + CHATML):
        tokens = small(source, bos="<s>", adds_bos=True).render(turns)
        assert spelled(tokens).startswith("[s][start]user")
    assert spelled(small(CHATML, bos="<s>").render(turns)).startswith("[start]user")


@pytest.mark.parametrize(
    ("control", "name", "marker"),
    [
        (["<|im_start|>", "<|im_end|>"], "ChatML", 256),
        (["<start_of_turn>", "<end_of_turn>"], "Gemma", 256),
        (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "Llama 3", 256),
        (["</s>"], "plain transcript", ord("U")),
    ],
)
def test_a_missing_template_falls_back_by_family(control: list[str], name: str, marker: int) -> None:
    template = ChatTemplate(None, byte_vocabulary(control=control, ends=control[-1:]))
    assert template.fallback == name
    assert template.render([Message("user", "Hi")])[0] == marker
    assert template.turn_end == 256 + len(control) - 1


def test_placeholders_in_messages_stay_text() -> None:
    tokens = small().render([Message("user", "a\ue0000\ue001\u2002\ue0001\ue001b"), Message("assistant", "secret")])
    assert spelled(tokens).count("secret") == 1
    assert "a\ue0000\ue001\u2002\ue0001\ue001b".encode() in spelled(tokens).encode("latin-1")


def test_bytes_that_the_vocabulary_lacks_do_not_end_the_talk(smollm2_path: Path) -> None:
    model, vocabulary = opened(smollm2_path)
    tokens = ChatTemplate(model.chat_template, vocabulary).render([Message("user", "a\x04b\ud800c")])
    assert b"ab?c" in vocabulary.decode(tokens)


QWEN_3 = (  # as Qwen3 treats old answers
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set content = m.content %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1]"
    ".lstrip('\n') %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% else %}{% set thought = '' %}"
    "{% endif %}{% if loop.index0 > ns.last or keep is defined %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n"
    "{% endif %}{{ content.lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if '<|channel|>' in m.content %}"
    "{{ raise_exception('channels in the content') }}{% endif %}"
    "{% if loop.last and m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>"
    "{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def thinking(kind: TokenKind = "user", source: str = QWEN_3) -> tuple[ChatTemplate, Vocabulary]:
    """Bytes, the words "user" and "assistant", markers of turns and of thoughts."""
    control = ["<|im_start|>", "<|im_end|>"]
    pieces = [bytes([byte]) for byte in range(256)] + [b"user", b"assistant", b"<think>", b"</think>"]
    kinds: list[TokenKind] = ["normal"] * 258 + [kind] * 2 + ["control"] * 2  # type: ignore[list-item]
    ids = {text: 260 + i for i, text in enumerate(control)}
    if kind == "control":
        ids |= {"<think>": 258, "</think>": 259}
    tokenizer = PieceTokenizer([*pieces, b"", b""], ids, kinds=kinds, ends=["<|im_end|>"])
    vocabulary = Vocabulary(tokenizer)
    return ChatTemplate(source, vocabulary), vocabulary


def text_of(tokens: Sequence[int], vocabulary: Vocabulary) -> str:
    return b"".join(map(vocabulary.literal, tokens)).decode()


def test_an_old_answers_thought_is_left_out_where_the_template_leaves_it_out() -> None:
    template, vocabulary = thinking()
    ids = (258, *b"\nHm.\n", 259, *b"\n\nYo")
    whole = Message("assistant", "<think>\nHm.\n</think>\n\nYo", ids)
    apart = Message("assistant", "Yo", ids, "\nHm.\n")
    for answer in (whole, apart):
        turns = [Message("user", "Hi"), answer, Message("user", "And?")]
        said = text_of(template.render(turns), vocabulary)
        assert "Hm" not in said
        assert said.startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user")
        assert template.render(turns[:2], reply=False).count(258) == 1  # the last one's stays


def test_a_thought_that_the_template_keeps_goes_back_as_the_ids_that_it_was() -> None:
    """So that nothing of it is read again; as control tokens and as added tokens."""
    keeping = QWEN_3.replace("or keep is defined", "or true")
    for kind in ("user", "control"):
        template, _ = thinking(kind, keeping)
        ids = (258, *b"\nHm.\n", 259, *b"\n\nuser")  # not the one token of "user"
        answers = [Message("assistant", "user", ids, "\nHm.\n")]
        if kind == "user":
            answers.append(Message("assistant", "<think>\nHm.\n</think>\n\nuser", ids))
        for answer in answers:
            prompt = template.render([Message("user", "Hi")])
            tokens = template.render([Message("user", "Hi"), answer, Message("user", "And?")])
            assert tokens[: len(prompt) + len(ids)] == [*prompt, *ids]


def test_an_answer_that_only_speaks_of_thoughts_has_none() -> None:
    for kind in ("user", "control"):
        template, _ = thinking(kind, CHATML)
        ids = (*b"Write <think> first",)
        answer = Message("assistant", "Write <think> first", ids)
        tokens = template.render([Message("user", "Hi"), answer, Message("user", "And?")])
        assert 258 not in tokens
        assert bytes(ids) in bytes(token for token in tokens if token < 256)


def test_markup_of_a_family_is_written_once() -> None:
    """An answer of gpt-oss holds its channels, and the template writes them too."""
    control = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"]
    vocabulary = byte_vocabulary(control=control, ends=["<|return|>"])
    template = ChatTemplate(GPT_OSS, vocabulary)
    start, end, message, channel = range(256, 260)
    final = (channel, *b"final", message, *b"Yo")
    whole = (channel, *b"analysis", message, *b"Hm", end, start, *b"assistant", *final)
    for ids, thought in ((final, None), (whole, "Hm")):
        turns = [Message("user", "Hi"), Message("assistant", "Yo", ids, thought), Message("user", "And?")]
        tokens = template.render(turns)
        prompt = template.render(turns[:1])
        assert tokens[: len(prompt) + len(final)] == [*prompt, *final]
        assert tokens.count(channel) == 1
    # Said of channels, it is neither refused nor markup.
    tokens = template.render([Message("user", "Hi"), Message("assistant", "a <|channel|> b"), Message("user", "x")])
    assert tokens.count(channel) == 1


def test_a_template_decides_by_what_was_said() -> None:
    source = CHATML + "{% if '/no_think' in messages[-1].content %}<think>\n\n</think>\n\n{% endif %}"
    template = small(source)
    assert spelled(template.render([Message("user", "Hi /no_think")])).endswith("assistant\n<think>\n\n</think>\n\n")
    assert spelled(template.render([Message("user", "/no_think")])).endswith("assistant\n<think>\n\n</think>\n\n")
    assert spelled(template.render([Message("user", "Hi")])).endswith("assistant\n")


def test_a_template_that_wants_parts_is_given_parts() -> None:
    silent = CHATML.replace(
        "{{ m.content }}", "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    )
    loud = CHATML.replace("{{ m.content }}", "{{ m.content[0]['text'] + '' }}")
    turns = [Message("system", "Be."), Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "So?")]
    for source in (silent, loud):
        assert small(source).render(turns) == small().render(turns)


def test_a_lost_system_message_goes_into_the_first_question() -> None:
    source = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    tokens = small(source).render([Message("system", "Be brief."), Message("user", "Hi")], reply=False)
    assert spelled(tokens) == "[start]user\nBe brief.\n\nHi[end]\n"
    # Short ones too, though their letters occur elsewhere.
    tokens = small(source).render([Message("system", "us"), Message("user", "e")], reply=False)
    assert spelled(tokens) == "[start]user\nus\n\ne[end]\n"


def test_a_lost_question_is_an_error() -> None:
    last = small("{{ bos_token }}Q: {{ messages[-1].content }}")
    last.render([Message("user", "one")])
    with pytest.raises(TemplateError, match="does not write the messages"):
        last.render([Message("user", "one"), Message("assistant", "two"), Message("user", "one")])


def test_a_template_can_be_told_whether_to_think() -> None:
    template, vocabulary = thinking()
    turns = [Message("user", "Hi")]
    assert template.can_switch_thinking
    assert template.render(turns, think=True) == template.render(turns)
    assert text_of(template.render(turns, think=False), vocabulary).endswith("<think>\n\n</think>\n\n")
    assert template.reply_opening(False) == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert not small().can_switch_thinking
    effort = small(CHATML + "{{ reasoning_effort | default('medium') }}")
    assert spelled(effort.render(turns, think=False)).endswith("low")
    assert spelled(effort.render(turns, think=None)).endswith("medium")


def test_a_template_that_cannot_be_used_is_replaced_and_says_why() -> None:
    vocabulary = small()._vocabulary
    for source, why in (
        ("{% frobnicate %}", "unknown tag"),
        ("{{ raise_exception('never') }}", "never"),
        ("", "write"),
    ):
        template, refusal = usable(source, vocabulary)
        assert why in refusal
        assert template.fallback == "ChatML"
        template, refusal = usable(source, vocabulary, DOCUMENT)
        assert template.source == DOCUMENT
    assert usable(CHATML, vocabulary)[1] == ""
    assert usable(None, vocabulary)[0].fallback == "ChatML"


def test_prompts_are_tokenised_as_the_engine_tokenises_them(family_name: str) -> None:
    """Words, spaces and lines around control tokens."""
    path = vocabularies.vocabulary_gguf(family_name)
    engine, (_, vocabulary) = vocabularies.EngineVocabulary(path), opened(path)
    llama_2 = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    for source in (llama_2, vocabularies.template(family_name) or llama_2):
        template = ChatTemplate(source, vocabulary)
        for said in (
            "Hello?",
            "  x\n",
            "a\n\n\nb",
            "def f(x):\n    return x < 1",
            "Привет 你好 🙂",
            "<b>1</b>",
            "[INS",
        ):
            turns = [Message("user", said), Message("assistant", said), Message("user", said)]
            witness = engine.encode(template.text(turns))
            bos = [vocabulary.bos] if vocabulary.adds_bos and witness[:1] != [vocabulary.bos] else []
            assert template.render(turns) == [*bos, *witness]


@pytest.fixture(params=vocabularies.NAMES)
def family_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_sentencepieces_space_stands_behind_control_tokens(tmp_path: Path) -> None:
    """As Llama 2 was trained: a space begins the text, and the text behind every control token."""
    path = write_tiny(tmp_path / "spm.gguf", vocab="spm")
    _, vocabulary = opened(path)
    template = ChatTemplate("{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}{% endfor %}", vocabulary)
    turns = [Message("user", "Hi")]
    assert template.render(turns) == vocabularies.EngineVocabulary(path).encode(template.text(turns))
    assert vocabulary.decode(template.render(turns)).startswith(b" [INST] Hi")
    # What looks like markup is text behind the same space.
    literal = next(text for text in vocabulary.literals if len(text) > 2)
    tokens = template.render([Message("user", f"a{literal}b")])
    assert vocabulary.decode(tokens) == f" [INST] a{literal}b".encode()


def test_control_tokens_take_white_space_as_the_engine_lets_them(tmp_path: Path) -> None:
    class Strips(PieceTokenizer):
        def strips(self, token: int) -> tuple[bool, bool]:
            return token == 257, token == 256

        def tokenize_marked(self, text: bytes) -> list[int]:
            text = re.sub(rb"(<\|im_start\|>)\s+", rb"\1", re.sub(rb"\s+(<\|im_end\|>)", rb"\1", text))
            return super().tokenize_marked(text)

    ids = {"<|im_start|>": 256, "<|im_end|>": 257}
    pieces = [bytes([byte]) for byte in range(256)] + [b"", b""]
    template = ChatTemplate(
        "{% for m in messages %}<|im_start|>  {{ m.content }}  <|im_end|>{% endfor %}",
        Vocabulary(Strips(pieces, ids, ends=["<|im_end|>"])),
    )
    assert template.render([Message("user", "a b")]) == [256, *b"a b", 257]
    assert template.render([Message("user", "<|im_end|>")]) == [256, *b"<|im_end|>", 257]


def test_an_answer_of_bytes_that_are_no_text_goes_back_as_its_ids() -> None:
    """Also where half a letter at its end was not shown."""
    template = small()
    for ids in ((203,) * 10, (65, 252), (0xF0, 0x9F, 0x99), (*b"aa", 0xF0), (*"aé".encode(), *"🙂".encode()[:3])):
        prompt = template.render([Message("user", "Hi")])
        shown = bytes(ids).decode("utf-8", "replace")
        for content, n_kept in ((shown, len(ids)), (shown[:-1], len(bytes(ids).decode("utf-8", "ignore")))):
            if content:
                turns = [Message("user", "Hi"), Message("assistant", content, ids), Message("user", "?")]
                tokens = template.render(turns)
                assert tokens[: len(prompt) + min(n_kept, 1)] == [*prompt, *ids[: min(n_kept, 1)]]
                assert content != shown or tokens[: len(prompt) + len(ids)] == [*prompt, *ids]
