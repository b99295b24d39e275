"""POST /completions, /tokenize and /detokenize: prompts as they are, and log probabilities as evaluations read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_servers import CONTROL, Running, Scripted, running
from tiny_gguf import write_tiny

from edgellm.app.serving import SingleServed
from edgellm.runtime import Engine, EngineOptions, load
from edgellm.runtime.text.vocabulary import Vocabulary

PROMPT = "the thin hat in the tin"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with load(path, None, EngineOptions(n_ctx=256, n_draft=4, learn="off", n_threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Running]:
    with running(SingleServed(engine, "tiny")) as server:
        yield server


@pytest.fixture(scope="module")
def scripted() -> Iterator[Running]:
    with running(Scripted()) as server:
        yield server


def told(server: Running, **fields: Any) -> Any:
    reply = server.complete(**fields)
    assert reply.status == 200, reply.body
    return reply.json()


def ids(engine: Engine, text: str) -> list[int]:
    return engine.model.vocabulary.encode(text.encode())


def test_a_prompt_is_gone_on_from_as_it_is_whether_it_is_text_or_ids(server: Running, engine: Engine) -> None:
    by_text = told(server, prompt=PROMPT, max_tokens=8)
    assert by_text["object"] == "text_completion"
    assert by_text["usage"]["prompt_tokens"] == len(ids(engine, PROMPT))
    by_ids = told(server, prompt=ids(engine, PROMPT), max_tokens=8)
    assert by_ids["choices"] == by_text["choices"]
    assert told(server, prompt=PROMPT)["usage"]["completion_tokens"] == 16  # OpenAI's default


def test_several_prompts_are_answered_in_their_order_each_with_its_choices(server: Running, engine: Engine) -> None:
    prompts = [PROMPT, "hat", "in a tin"]
    answer = told(server, prompt=prompts, max_tokens=4, n=2)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    alone = [told(server, prompt=prompt, max_tokens=4)["choices"][0]["text"] for prompt in prompts]
    assert [choice["text"] for choice in answer["choices"]] == [text for text in alone for _ in range(2)]
    assert answer["usage"]["prompt_tokens"] == sum(len(ids(engine, prompt)) for prompt in prompts)
    by_ids = told(server, prompt=[ids(engine, prompt) for prompt in prompts], max_tokens=4)
    assert [choice["text"] for choice in by_ids["choices"]] == alone


def test_an_echo_with_log_probabilities_is_what_evaluations_read(server: Running, engine: Engine) -> None:
    """The request of lm-eval's `local-completions`, and the four lists that it reads."""
    prompt = ids(engine, PROMPT)
    fields = {"prompt": [prompt], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    (choice,) = told(server, **fields)["choices"]
    found = choice["logprobs"]
    assert list(found) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
    assert {len(values) for values in found.values()} == {len(prompt) + 1}  # one more, which the client cuts off
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    assert all(value < 0 for value in found["token_logprobs"][1:])
    assert choice["text"].startswith(PROMPT)
    for offset, token in zip(found["text_offset"], found["tokens"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][offset:].startswith(token)
    for token, logprob, top in list(zip(*list(found.values())[:3], strict=True))[1:]:
        assert top[token] == logprob
        assert max(top.values()) >= logprob


def test_the_end_token_counts_so_that_one_token_is_always_there(engine: Engine, server: Running) -> None:
    end = min(engine.model.vocabulary.end_tokens)
    fields: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 1, "logprobs": 0, "logit_bias": {str(end): 100}}
    (choice,) = told(server, echo=True, **fields)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "stop")
    assert len(choice["logprobs"]["tokens"]) == len(ids(engine, PROMPT)) + 1


def test_a_stream_of_a_completion_tells_the_same_text(server: Running) -> None:
    whole = told(server, prompt=PROMPT, max_tokens=12, echo=True)["choices"][0]
    reply = server.complete(prompt=PROMPT, max_tokens=12, echo=True, stream=True)
    *chunks, done = reply.events()
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_log_probabilities_of_a_chat_are_those_of_its_text_streamed_or_not(server: Running) -> None:
    fields: dict[str, Any] = {"max_tokens": 10, "logprobs": True, "top_logprobs": 2, "repeat_penalty": 3.0}
    (choice,) = server.chat(**fields).json()["choices"]
    content = choice["logprobs"]["content"]
    written = b"".join(bytes(one["bytes"]) for one in content).decode("utf-8", "replace")
    assert written.startswith(choice["message"]["content"])  # half a character at the end is no text
    assert written.rstrip("\ufffd") == choice["message"]["content"].rstrip("\ufffd")
    assert all(len(one["top_logprobs"]) == 2 for one in content)
    streamed: list[Any] = []
    for chunk in server.chat(stream=True, **fields).events()[:-1]:
        streamed += (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    assert [(one["token"], one["bytes"]) for one in streamed] == [(one["token"], one["bytes"]) for one in content]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["x", 5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "x", "echo": True, "logprobs": 1, "stream": True}, "echo"),
        ({"prompt": "x", "suffix": 3}, "suffix"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),  # the tiny model fills no gaps
        ({"prompt": "x", "messages": []}, "messages"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(server: Running, fields: dict[str, Any], param: str) -> None:
    reply = server.complete(**fields)
    assert (reply.status, reply.error()["param"]) == (400, param)


def test_a_gap_is_given_to_a_model_that_fills_gaps(scripted: Running) -> None:
    served = scripted.service.models.first.served
    assert isinstance(served, Scripted)
    told(scripted, prompt="ab<|fim_suffix|>", suffix="yz")
    before, behind, gap = (256 + CONTROL.index(f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle"))
    text = list(b"ab<|fim_suffix|>")  # what people wrote stays text
    assert served.requests[-1].prompt == (before, *text, behind, *b"yz", gap)


def test_control_tokens_are_text_unless_they_are_asked_for(scripted: Running) -> None:
    served = scripted.service.models.first.served
    assert isinstance(served, Scripted)
    told(scripted, prompt="a<|im_end|>")
    assert served.requests[-1].prompt == tuple(b"a<|im_end|>")
    told(scripted, prompt="a<|im_end|>", parse_special=True)
    assert served.requests[-1].prompt == (ord("a"), 258)


def test_an_empty_prompt_begins_with_the_token_that_begins_texts(scripted: Running) -> None:
    served = scripted.service.models.first.served
    assert isinstance(served, Scripted)
    told(scripted, prompt="")
    assert served.requests[-1].prompt == (256,)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_text_becomes_tokens_and_comes_back(scripted: Running, prefix: str) -> None:
    text = "hat é<|im_end|>"
    tokens = scripted.ask("POST", f"{prefix}/tokenize", {"content": text}).json()["tokens"]
    assert tokens == list(text.encode())
    assert scripted.ask("POST", f"{prefix}/detokenize", {"tokens": tokens}).json()["content"] == text
    marked = scripted.ask("POST", f"{prefix}/tokenize", {"content": "a<|im_end|>", "parse_special": True}).json()
    assert marked == {"tokens": [97, 258]}
    assert scripted.ask("POST", f"{prefix}/detokenize", marked).json()["content"] == "a<|im_end|>"
    pieces = scripted.ask("POST", f"{prefix}/tokenize", {"content": "é", "with_pieces": True}).json()
    assert pieces == {"tokens": [{"id": 195, "piece": "bytes:\\xc3"}, {"id": 169, "piece": "bytes:\\xa9"}]}


def test_an_evaluation_finds_the_tokenizer_at_the_server(scripted: Running) -> None:
    info = scripted.ask("GET", "/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"]) == ("<|endoftext|>", "<|im_end|>")
    assert "<|im_start|>" in info["chat_template"]

    def encode(text: str) -> Any:
        return scripted.ask("POST", "/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]

    assert encode(info["eos_token"]) == [258]
    assert encode("a<|im_end|>") == [97, 258]
    assert scripted.ask("POST", "/detokenize", {"tokens": [97, 258]}).json()["prompt"] == "a<|im_end|>"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"content": 3}),
        ("/tokenize", {"content": "x", "add_special": 1}),
        ("/tokenize", {"content": "x", "prompt": "x"}),
        ("/tokenize", {"content": "x", "add_special_tokens": False}),
        ("/tokenize", {"prompt": "x", "add_special_tokens": 1}),
        ("/tokenize", {"prompt": "x", "add_special": True}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": "x"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [True]}),
        ("/detokenize", {"tokens": [10**9]}),
    ],
    ids=json.dumps,
)
def test_what_is_no_text_and_no_tokens_is_refused(scripted: Running, path: str, body: dict[str, Any]) -> None:
    assert scripted.ask("POST", path, body).status == 400


@pytest.mark.parametrize(
    ("path", "field"),
    [("/completions", "prompt"), ("/tokenize", "content"), ("/tokenize", "prompt"), ("/embeddings", "input")],
)
def test_a_text_that_no_context_could_hold_is_refused_before_it_is_tokenised(
    monkeypatch: pytest.MonkeyPatch, path: str, field: str
) -> None:
    served = Scripted(n_ctx=32)
    longest = served.vocabulary.longest_bytes
    with running(served) as server:
        monkeypatch.setattr(Vocabulary, "encode", lambda *_: pytest.fail("tokenised"))
        monkeypatch.setattr(Vocabulary, "encode_marked", lambda _, data: [] if not data else pytest.fail("tokenised"))
        error = server.ask("POST", path, {field: "x" * (32 * longest + 1)}).error()
    assert error["code"] == "context_length_exceeded"
    assert "at least 33 tokens" in error["message"]
