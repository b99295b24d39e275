"""A draft head inside its target's file (MTP): what it drafts never shows, is cut back exactly, and is accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import alone
from numpy.typing import NDArray
from tiny_gguf import ARCHITECTURES, write_tiny
from tiny_heads import fit_head, head_alone, matrix_of, with_first_matrix, write_with_head

from edgellm.memory.architectures import DRAFT_HEADS
from edgellm.memory.context import HEAD_REACH, ContextSettings
from edgellm.memory.gguf import read_header
from edgellm.runtime import EngineOptions, Sampling, load
from edgellm.runtime.backends import llama_nextn
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.backends.llama_nextn import LlamaHead
from edgellm.runtime.decode import RoundResult, generate
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.head import MAX_BEHIND, HeadDrafter
from edgellm.runtime.sampling import GREEDY

SETTINGS = ContextSettings(1024, n_ubatch=32, n_outputs=9, n_rs_seq=9, n_threads=1, n_saved_states=4)
OWN = ContextSettings(1024, n_ubatch=32, n_outputs=1, n_threads=1)
Pair = tuple[LlamaBackend, LlamaHead]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads") / "tiny.gguf"
    return fit_head(write_with_head(path, weights="Q8_0", tied=False))


@pytest.fixture
def pair(tiny: Path) -> Iterator[Pair]:
    model = LlamaModel(tiny, ModelOptions(head=True))
    backend = LlamaBackend(model, SETTINGS)
    head = backend.with_head(model, OWN)
    yield backend, head
    head.close()
    backend.close()
    model.close()


def some(n: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(n)]


def answer(backend: LlamaBackend, drafter: object, prompt: list[int], **more: object) -> list[RoundResult]:
    backend.truncate(0)
    sampling = more.pop("sampling", GREEDY)
    drafter.begin(prompt, sampling=sampling)  # type: ignore[attr-defined]
    return list(generate(backend, drafter, prompt, sampling, **{"max_new": 60, "n_draft": 4, **more}))  # type: ignore[arg-type]


def tokens_of(results: list[RoundResult]) -> list[int]:
    return [token for result in results for token in result.tokens]


@pytest.mark.parametrize("n_draft", [1, 2, 4, 8])
def test_greedy_answers_are_those_without_it_and_cost_fewer_passes(pair: Pair, n_draft: int) -> None:
    backend, head = pair
    drafter, n_drafted, n_accepted = alone(HeadDrafter(head)), 0, 0
    for seed in range(5):
        prompt = some(12, seed)
        plain = answer(backend, NoDrafter(), prompt)
        drafted = answer(backend, drafter, prompt, n_draft=n_draft)
        assert tokens_of(drafted) == tokens_of(plain)
        n_drafted += sum(result.n_drafted for result in drafted)
        n_accepted += sum(result.n_accepted for result in drafted)
        assert len(drafted) < 0.8 * len(plain)
    assert n_accepted > 0.15 * n_drafted


@pytest.mark.parametrize("architecture", sorted(DRAFT_HEADS & ARCHITECTURES.keys()))
def test_a_head_that_has_learnt_nothing_changes_no_answer(architecture: str, tmp_path: Path) -> None:
    path = write_with_head(tmp_path / "tiny.gguf", architecture, weights="Q8_0")
    model = LlamaModel(path, ModelOptions(head=True))
    backend = LlamaBackend(model, SETTINGS)
    head = backend.with_head(model, OWN)
    for seed in range(4):
        prompt = some(9, seed)
        assert tokens_of(answer(backend, alone(HeadDrafter(head)), prompt)) == tokens_of(
            answer(backend, NoDrafter(), prompt)
        )
    head.close()
    backend.close()
    model.close()


def test_it_is_given_the_states_that_logits_are_computed_from_and_they_change_no_bit(tiny: Path, pair: Pair) -> None:
    backend, head = pair
    model = LlamaModel(tiny)
    other = LlamaBackend(model, SETTINGS)
    other.want_hidden_states()
    for n in (8, 1, 3):
        tokens = some(n, n)
        logits = backend.forward(tokens, n).copy()
        assert np.array_equal(logits, other.forward(tokens, n))
        first = len(backend.tokens) - n
        assert np.array_equal(head.rows.before(first + 1, first + n + 1), other.hidden_states())
    assert not head.rows.before(0, 1).any()
    other.close()
    model.close()


def test_a_token_is_read_with_the_state_before_it(tmp_path: Path) -> None:
    """A head that hands the state on alone says what its target said of that very token."""
    path = write_with_head(tmp_path / "tiny.gguf", depth=1.0, weights="F16", tied=False)
    weights = matrix_of(read_header(path), "output_norm.weight")
    with_first_matrix(path, np.concatenate([np.zeros((64, 64)), np.diag(1 / weights)], 1))
    model = LlamaModel(path, ModelOptions(head=True))
    backend = LlamaBackend(model, SETTINGS)
    head, tokens = backend.with_head(model, OWN), some(60, 2)
    said = [int(row.argmax()) for i in range(0, 60, 6) for row in backend.forward(tokens[i : i + 6], 6)]
    n_same = 0
    for position in range(1, 60):
        head.begin_at(position)
        n_same += int(head.read(tokens[position : position + 1]).argmax()) == said[position - 1]
    assert n_same > 50
    head.close()
    backend.close()
    model.close()


def test_after_any_rejections_the_head_is_as_if_it_had_read_the_text_alone(pair: Pair) -> None:
    """1,000 rounds at random: drafts that are right, wrong at any place, cut short; on our kernels bit for bit."""
    backend, head = pair
    drafter, rng = HeadDrafter(head), random.Random(5)
    held = some(20, 1)
    drafter.begin(held)
    backend.forward(held[:-1], 0)
    for i in range(1000):
        if len(held) > 900:
            held = [*held[:300], rng.randrange(256)]
            backend.truncate(0)
            backend.forward(held[:-1], 0)
            drafter.begin(held)
        n, prefix = rng.randint(1, 6), some(rng.randint(0, 2), i)
        drafted = [*prefix]
        for guesses in drafter.drafting(held, prefix):
            drafted = [*prefix, *(guess.token for guess in guesses)]
            if len(guesses) >= n:
                break
        rows = backend.forward([held[-1], *drafted[:8]], len(drafted[:8]) + 1)
        n_kept = rng.randint(0, len(drafted[:8]))
        new = [*drafted[:n_kept], int(rows[n_kept].argmax())]
        held = [*held, *new]
        backend.truncate(len(held) - 1)
        drafter.observe(held, len(new))
        assert head.tokens == held[head.start : head.start + len(head.tokens)]
        if i % 20 == 0:
            next(iter(drafter.drafting(held, [])))
            assert np.array_equal(logits_of(head), fresh_logits(pair, held))
            drafter.observe(held, 0)


def logits_of(head: LlamaHead) -> NDArray[np.float32]:
    return llama_nextn.rows_at(llama_nextn.api.llama_get_logits(head._ctx), 1, head.n_vocab)[0].copy()


def fresh_logits(pair: Pair, text: list[int]) -> NDArray[np.float32]:
    """Of another head over the same states."""
    backend, head = pair
    other = LlamaHead(backend.model, backend._ctx, head.rows, OWN)
    other.begin_at(head.start)
    logits = other.read(text[head.start :]).copy()
    other.close()
    return logits


def test_a_long_text_is_read_from_where_its_states_are_still_held(pair: Pair) -> None:
    backend, head = pair
    prompt = some(HEAD_REACH + 200, 3)
    drafter = HeadDrafter(head)
    drafter.begin(prompt)
    assert drafter.n_unread() == HEAD_REACH
    backend.forward(prompt[:-1], 0)
    assert next(drafter.drafting(prompt, []))
    assert head.start == len(prompt) - HEAD_REACH
    assert len(head.tokens) == HEAD_REACH
    drafter.observe([*prompt, 7], 1)
    assert drafter.n_unread() == 1
    plain = tokens_of(answer(backend, NoDrafter(), prompt, max_new=20))
    assert tokens_of(answer(backend, alone(HeadDrafter(head)), prompt, max_new=20)) == plain


def test_a_head_with_a_smaller_context_begins_anew_and_goes_on(pair: Pair) -> None:
    backend, _ = pair
    head = backend.with_head(backend.model, ContextSettings(128, n_ubatch=32, n_outputs=1, n_threads=1))
    prompt = some(200, 3)
    plain = tokens_of(answer(backend, NoDrafter(), prompt, max_new=200))
    drafted = answer(backend, alone(HeadDrafter(head)), prompt, max_new=200)
    assert tokens_of(drafted) == plain
    assert head.start > 200
    assert sum(result.n_accepted for result in drafted[-20:])
    head.close()


def test_where_no_state_is_held_nothing_is_drafted(pair: Pair) -> None:
    backend, head = pair
    prompt = some(HEAD_REACH + 300, 3)
    backend.forward(prompt[:100], 0)
    backend.forward(prompt[100:], 0)
    backend.truncate(100)
    backend.forward([5], 1)
    drafter = HeadDrafter(head)
    drafter.begin([*prompt[:100], 5, 6])
    assert list(drafter.drafting([*prompt[:100], 5, 6], [])) != []  # the state of the last token is all that it needs
    drafter.begin(prompt[:50])
    assert list(drafter.drafting(prompt[:50], [])) == []
    drafter.begin(prompt[:50])
    assert list(drafter.drafting(prompt[:50], [5] * (MAX_BEHIND + 1))) == []


def test_a_conversation_that_goes_on_reads_only_what_is_new(pair: Pair) -> None:
    backend, head = pair
    prompt = some(60, 3)
    drafter = HeadDrafter(head)
    backend.forward(prompt[:-1], 0)
    drafter.begin(prompt)
    next(drafter.drafting(prompt, []))
    text = [*prompt, *some(10, 4)]
    drafter.begin(text)
    assert drafter.n_unread() == 10
    drafter.begin([*prompt[:20], *some(10, 5)])
    assert drafter.n_unread() == 10


def test_drafters_of_one_target_do_not_disturb_each_other(pair: Pair) -> None:
    backend, head = pair
    other = backend.with_head(backend.model, OWN)
    prompt = some(12, 8)
    plain = tokens_of(answer(backend, NoDrafter(), prompt))
    results = [answer(backend, alone(HeadDrafter(one)), prompt) for one in (head, other, head)]
    assert all(tokens_of(result) == plain for result in results)
    assert len({tuple(len(one.tokens) for one in result) for result in results}) == 1
    other.close()


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.7, seed=5)])
def test_an_engine_drafts_with_it_beside_copies_and_says_the_same(tiny: Path, fixed: bool, sampling: Sampling) -> None:
    options = EngineOptions(n_ctx=512, n_threads=1, learn="fresh", head=True, fixed=fixed, n_draft=4)
    with load(tiny, options=options) as engine:
        assert any("head that is inside it" in note for note in engine.notes)
        assert engine.draft_model is None
        for question in ("hello", "hello again, hello"):
            drafted = engine.generate(question, max_tokens=60, sampling=sampling).finish()
            plain = engine.generate(question, max_tokens=60, sampling=sampling, n_draft=0).finish()
            assert drafted.text == plain.text
        if fixed:
            assert engine.drafter.choices.rounds_by["model"]  # type: ignore[attr-defined]


def test_a_controller_gives_up_a_head_that_is_never_right(tmp_path: Path) -> None:
    path = write_with_head(tmp_path / "tiny.gguf", weights="Q8_0")
    with load(
        path, options=EngineOptions(n_ctx=2048, n_threads=1, learn="fresh", head=True, copy=False, assume_cost=0.5)
    ) as engine:
        drafter = engine.drafter
        assert isinstance(drafter, AdaptiveDrafter)
        engine.generate("hello", max_tokens=400).finish()
        assert drafter.choices.rounds_by["none"] > 0.8 * drafter.choices.n_rounds


def test_the_plan_knows_it_and_may_do_without(tiny: Path) -> None:
    options = EngineOptions(n_ctx=512, n_threads=1, learn="off", head=True)
    with load(tiny, options=options) as engine:
        plan = engine.plan
        assert plan is not None
        assert plan.drafter == "mtp"
        lines = {line.name: line.n_bytes for line in plan.lines}
        assert lines["drafter cache"] == 512 * 2 * 2 * 32 * 2 * 2 // 2
        assert "drafter vocabulary" not in lines
    with load(tiny, options=EngineOptions(n_ctx=512, n_threads=1, learn="off")) as engine:
        assert engine.plan is not None
        assert engine.plan.drafter is None
        weights = {line.name: line.n_bytes for line in engine.plan.lines}["target weights"]
        assert weights == lines["target weights"]


def test_a_head_in_a_file_of_its_own_drafts_for_its_model_alone(tiny: Path, tmp_path: Path) -> None:
    draft = head_alone(tiny, tmp_path / "head.gguf")
    options = EngineOptions(n_ctx=512, n_threads=1, learn="off", copy=False, fixed=True, n_draft=3)
    with load(tiny, draft, options) as engine:
        answered = engine.generate("hello", max_tokens=40).finish()
        assert answered.text == engine.generate("hello", max_tokens=40, n_draft=0).finish().text
        assert answered.stats.n_accepted
    other = write_tiny(tmp_path / "other.gguf", n_embd=32, head_dim=32)
    with pytest.raises(LoadError, match="draft head of another model"):
        load(other, draft, options)


def test_what_cannot_draft_is_refused_with_the_reason(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(n_ctx=512, n_threads=1, learn="off", head=True)
    with pytest.raises(LoadError, match="has no draft head inside"):
        load(write_tiny(tmp_path / "plain.gguf"), options=options)

    def without() -> object:
        raise LoadError("draft heads cannot be used: this llama.cpp lacks a call that they need")

    monkeypatch.setattr(llama_nextn, "calls", without)
    with pytest.raises(LoadError, match="lacks a call"):
        load(tiny, options=options)
