"""What cannot fit into a context is refused before it is tokenised, and nothing else is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fakes import byte_vocabulary
from hypothesis import given
from hypothesis import strategies as st
from tool_templates import FAMILIES

from edgellm.runtime.backends.base import PromptTooLong
from edgellm.runtime.prompting import Prompt, check_length
from edgellm.runtime.request import Request
from edgellm.runtime.text.template import ChatTemplate
from edgellm.runtime.text.vocabulary import Vocabulary

_, SOURCE, CONTROL = FAMILIES["hermes"]
WORDS = byte_vocabulary(b"wonderful world, wonderful", control=CONTROL, ends=["<|im_end|>"])
TEMPLATE = ChatTemplate(SOURCE, WORDS)
N_CTX = 64


def prompt(**settings: Any) -> list[int]:
    messages = settings.pop("messages")
    model, backend = SimpleNamespace(vocabulary=WORDS, n_ctx_train=N_CTX), SimpleNamespace(n_ctx=N_CTX)
    return Prompt(Request.of(messages, **settings), backend, TEMPLATE, model, None).tokens(0)  # type: ignore[arg-type]


@given(parts=st.lists(st.sampled_from(["wonderful world, wonderful", "a", "\u00e9", "<|im_end|>", " "]), max_size=90))
def test_no_text_is_refused_that_fits(parts: list[str]) -> None:
    text = "".join(parts)
    for tokens in (WORDS.encode(text.encode()), WORDS.encode_marked(text.encode())):
        if tokens is not None and len(tokens) <= N_CTX:
            check_length(len(text.encode()), WORDS, N_CTX)


def test_what_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    n_bytes = N_CTX * WORDS.longest_bytes + 1
    monkeypatch.setattr(Vocabulary, "encode", lambda *_: pytest.fail("tokenised"))
    for roles in (["user"], ["system", "user"]):
        with pytest.raises(PromptTooLong, match=f"at least {N_CTX + 1} tokens") as refusal:
            prompt(messages=[{"role": role, "content": "x" * (-(-n_bytes // len(roles)))} for role in roles])
        assert (refusal.value.n_prompt, refusal.value.at_least) == (N_CTX + 1, True)


def test_what_a_template_leaves_out_does_not_count() -> None:
    """Space around a message, and the thoughts of earlier answers."""
    spaces = " " * N_CTX * WORDS.longest_bytes
    stripping = ChatTemplate(SOURCE.replace("m.content }}", "m.content.split('|')[-1] | trim }}"), WORDS)
    model, backend = SimpleNamespace(vocabulary=WORDS, n_ctx_train=N_CTX), SimpleNamespace(n_ctx=256)
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": f"<think>{'x' * 256 * WORDS.longest_bytes}|</think>b"},
        {"role": "user", "content": f"{spaces * 4}c"},
    ]
    request = Request.of(messages)
    assert len(Prompt(request, backend, stripping, model, None).tokens(0)) < 256  # type: ignore[arg-type]


def test_an_older_turn_that_may_be_forgotten_is_not_refused() -> None:
    long = "x" * N_CTX * WORDS.longest_bytes * 2
    messages = [
        {"role": "user", "content": long},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert len(prompt(messages=messages, on_full="shift")) < N_CTX
    with pytest.raises(PromptTooLong, match="at least"):
        prompt(messages=messages)
