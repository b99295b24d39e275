"""Chat templates: no message forges a control token, turns extend each other, the template decides what is kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import vocabularies
from fakes import byte_vocabulary

from edgellm.runtime.backends.llama_cpp import LlamaModel, ModelOptions
from edgellm.runtime.template import ChatTemplate, Message, TemplateError
from edgellm.runtime.vocabulary import Vocabulary

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
