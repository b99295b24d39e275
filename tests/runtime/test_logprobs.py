"""Log probabilities are the target's own, whoever drafts, and go with the text that is shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import NonsenseDrafter, TableBackend, random_table
from tiny_gguf import write_tiny

from edgellm.runtime import Engine, EngineOptions, Request, Sampling, load
from edgellm.runtime.backends.base import PromptTooLong
from edgellm.runtime.decode import generate as decode
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.generation import Generation
from edgellm.runtime.logprobs import Logprob, logprobs_of, score
from edgellm.runtime.request import BadRequest

N_VOCAB = 9
TABLE = random_table(N_VOCAB, 5)
SAMPLED = Sampling(temperature=1.3, repeat_penalty=2.0, seed=3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")  # its own drafter, so every draft is accepted
    options = EngineOptions(n_ctx=256, n_draft=4, fixed=True, learn="off", n_threads=1)
    with load(path, path, options) as engine:
        yield engine


def log_softmax(row: np.ndarray) -> list[float]:
    total = math.log(sum(math.exp(float(x)) for x in row))
    return [float(x) - total for x in row]


def test_each_token_has_the_probability_that_the_target_gave_it_before_sampling() -> None:
    for drafter in (NoDrafter(), NonsenseDrafter(N_VOCAB)):
        steps = decode(TableBackend(TABLE), drafter, [0, 1], SAMPLED, n_draft=4, max_new=40, n_logprobs=3)
        found = [one for step in steps for one in step.logprobs]
        tokens = [0, 1, *(one.token for one in found)]
        assert len(found) == 40
        for i, one in enumerate(found):
            row = log_softmax(TABLE[tokens[i], tokens[i + 1]])
            assert one.logprob == pytest.approx(row[one.token])
            ranked = sorted(enumerate(row), key=lambda item: -item[1])[:3]
            assert [token for token, _ in one.top] == [token for token, _ in ranked]
            assert [value for _, value in one.top] == pytest.approx([value for _, value in ranked])


def test_none_are_computed_where_none_are_asked_for() -> None:
    steps = decode(TableBackend(TABLE), NoDrafter(), [0, 1], SAMPLED, n_draft=0, max_new=3)
    assert [step.logprobs for step in steps] == [(), (), ()]


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    (found,) = logprobs_of(np.array([[0.0, 1.0]], np.float32), [0], 20)
    assert [token for token, _ in found.top] == [1, 0]


@pytest.mark.parametrize("max_outputs", [1, 2, 16])
def test_a_prompt_is_scored_token_by_token_whatever_the_width_of_a_pass(max_outputs: int) -> None:
    backend, prompt = TableBackend(TABLE, max_outputs=max_outputs), [3, 1, 4, 1, 5, 0, 2, 6]
    backend.forward([3, 1, 7], 1)
    found = score(backend, prompt, 1)
    held = [0, *prompt]
    expected = [log_softmax(TABLE[a, b])[token] for a, b, token in zip(held, held[1:], held[2:], strict=False)]
    assert [one.logprob for one in found] == pytest.approx(expected)
    assert [one.token for one in found] == prompt[1:]
    assert backend.tokens == prompt[:-1]


def answered(engine: Engine, request: Request) -> Generation:
    generation = Generation(engine, request)
    generation.finish()
    return generation


def test_an_answer_begins_where_its_prompt_of_ids_ends_and_the_scores_are_those_of_the_answer(engine: Engine) -> None:
    prompt = tuple(engine.model.vocabulary.encode(b"the thin hat in the tin"))
    first = answered(engine, Request(prompt=prompt, max_tokens=12, n_logprobs=2)).answer
    assert first.logprobs is not None
    assert [one.token for one in first.logprobs] == list(first.tokens)
    assert first.prompt_logprobs is None
    whole = (*prompt, *first.tokens)
    again = answered(engine, Request(prompt=whole, max_tokens=0, n_logprobs=2, score_prompt=True)).answer
    assert again.prompt_logprobs is not None
    assert (again.text, again.tokens, again.finish_reason) == ("", (), "length")
    assert len(again.prompt_logprobs) == len(whole) - 1
    for one, other in zip(first.logprobs, again.prompt_logprobs[-len(first.tokens) :], strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_pieces_carry_the_log_probabilities_of_their_text_and_none_of_what_a_stop_text_cut(engine: Engine) -> None:
    prompt = tuple(engine.model.vocabulary.encode(b"the hat"))
    varied = Sampling(repeat_penalty=3.0)
    whole = answered(engine, Request(prompt=prompt, max_tokens=24, n_logprobs=0, sampling=varied)).answer
    assert len(whole.text) > 12
    stop = whole.text[8:11]
    generation = Generation(engine, Request(prompt=prompt, max_tokens=24, n_logprobs=0, sampling=varied, stop=(stop,)))
    pieces = list(generation.pieces())
    cut = whole.text.index(stop)
    assert "".join(piece.text for piece in pieces) == generation.answer.text == whole.text[:cut]
    told = [one for piece in pieces for one in piece.logprobs]
    assert tuple(told) == generation.answer.logprobs
    assert whole.logprobs is not None
    assert [one.token for one in told] == [one.token for one in whole.logprobs if one.begin < cut]
    assert all(isinstance(one, Logprob) and one.begin < cut for one in told)


def test_a_prompt_is_refused_by_its_length_before_anything_is_read(engine: Engine) -> None:
    generation = Generation(engine, Request(prompt=(5,) * 300))
    with pytest.raises(PromptTooLong, match="300 tokens long and the context holds 256") as refusal:
        generation.prepare()
    assert (refusal.value.n_prompt, refusal.value.n_ctx) == (300, 256)
    assert Generation(engine, Request(prompt=(5,) * 255)).prepare() == 255


def test_preparing_changes_nothing_of_the_answer(engine: Engine) -> None:
    request = Request.of("the hat", max_tokens=8)
    plain = answered(engine, request).answer
    prepared = Generation(engine, request)
    assert prepared.prepare() == plain.stats.n_prompt
    assert prepared.finish().tokens == plain.tokens


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": ()}, "no list of token ids"),
        ({"prompt": (-1,)}, "no list of token ids"),
        ({"prompt": (1,), "on_full": "shift"}, "no turns to forget"),
        ({"prompt": (1,), "n_logprobs": 21}, "n_logprobs 21 is out of range"),
        ({"prompt": (1,), "score_prompt": True}, "give n_logprobs too"),
        ({"prompt": (1,), "max_tokens": -1}, "max_tokens -1 is negative"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        Request(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields", [{"prompt": (320,)}, {"prompt": (1,), "sampling": Sampling(logit_bias=((320, 1.0),))}]
)
def test_a_token_that_the_model_has_not_is_refused(engine: Engine, fields: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="token 320 is none"):
        Generation(engine, Request(**fields))  # type: ignore[arg-type]
