"""The loop: with any drafter the output is the target's own, and the backend is left true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fakes import NonsenseDrafter, PieceTokenizer, TableBackend, alone, random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.runtime.backends.base import ContextFull, keep_common_prefix
from edgellm.runtime.decode import RoundResult, generate
from edgellm.runtime.drafters.base import Drafter, NoDrafter
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.model import ModelDrafter, top_of
from edgellm.runtime.drafters.retokenizers import MapRetokenizer
from edgellm.runtime.drafters.translating import TranslatingDrafter
from edgellm.runtime.learning.costs import Costs, assumed
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.learning.ngrams import NgramCache
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.vocabulary import Vocabulary

E_ACUTE = "é".encode()
TARGET = [b"a", b"b", b" ", b"ab", b" a", E_ACUTE[:1], E_ACUTE[1:], b"\n", b"<end>"]
DRAFT = [b"<end>", b" ", b"ba", E_ACUTE, b"b", b"\n", b"a", b" ab", E_ACUTE[:1], E_ACUTE[1:]]
N_VOCAB = len(TARGET)
PROMPT = [0, 1, 2, 3, 0]


def target_vocabulary() -> Vocabulary:
    return Vocabulary(PieceTokenizer(TARGET, {"<end>": 8}, ends=["<end>"]))


def draft_vocabulary() -> Vocabulary:
    return Vocabulary(PieceTokenizer(DRAFT, {"<end>": 0}, ends=["<end>"]))


def model_drafter(seed: int) -> ModelDrafter:
    return ModelDrafter(TableBackend(random_table(N_VOCAB, seed)))


def knowing_drafter(seed: int) -> Drafter:
    """The target as its own drafter: everything is accepted."""
    return alone(ModelDrafter(TableBackend(random_table(N_VOCAB, seed))))


def partly_different_drafter(seed: int) -> Drafter:
    return alone(ModelDrafter(TableBackend(random_table(N_VOCAB - 2, seed)), frozenset({1, 3})))


def translating_drafter(seed: int) -> TranslatingDrafter:
    backend = TableBackend(random_table(len(DRAFT), seed), n_ctx=96)  # so small that its window slides
    return TranslatingDrafter(backend, draft_vocabulary(), target_vocabulary(), 8)


def mapped_drafter(seed: int, cache: NgramCache | None, shared_only: bool = False) -> Drafter:
    own, target = draft_vocabulary(), target_vocabulary()
    retokenizer = MapRetokenizer(own, target, cache)
    backend = TableBackend(random_table(len(DRAFT), seed), n_ctx=96)
    return alone(
        TranslatingDrafter(
            backend, own, target, 8, retokenizer=retokenizer, cache=cache, shared_only=shared_only, reach=20
        )
    )


def costs(per_token: float = 0.05) -> Costs:
    return Costs(assumed(1.0, per_token), assumed(0.1, 0.05))


def adaptive(seed: int, **options: Any) -> AdaptiveDrafter:
    options = {"conversation": NgramIndex(256), "costs": costs()} | options
    return AdaptiveDrafter(TableBackend(random_table(N_VOCAB, seed)), **options)


DRAFTERS: dict[str, Callable[[int], Drafter]] = {
    "none": lambda seed: NoDrafter(),
    "copy": lambda seed: adaptive(seed, fixed=9),
    "store": lambda seed: adaptive(seed, conversation=None, store=NgramIndex(64), fixed=9),
    "model": lambda seed: alone(model_drafter(seed + 1)),
    "itself": lambda seed: alone(model_drafter(seed)),
    "partly different": partly_different_drafter,
    "recurrent": lambda seed: alone(ModelDrafter(TableBackend(random_table(N_VOCAB, seed), can_truncate=False))),
    "window": lambda seed: alone(ModelDrafter(TableBackend(random_table(N_VOCAB, seed), n_ctx=96))),
    "small context": lambda seed: alone(ModelDrafter(TableBackend(random_table(N_VOCAB, seed), n_ctx=12))),
    "translating": lambda seed: alone(translating_drafter(seed)),
    "all, fixed": lambda seed: adaptive(seed, model=translating_drafter(seed), fixed=9),
    "entropy rule": lambda seed: adaptive(seed, model=model_drafter(seed + 1), fixed=9, stop="entropy"),
    "controller": lambda seed: adaptive(seed, model=model_drafter(seed + 1), store=NgramIndex(300)),
    "controller, related": lambda seed: adaptive(seed, model=model_drafter(seed), store=NgramIndex(300)),
    "controller, translating": lambda seed: adaptive(seed, model=translating_drafter(seed)),
    "controller, dear passes": lambda seed: adaptive(seed, model=model_drafter(seed), costs=costs(0.9)),
    "OmniDraft": lambda seed: mapped_drafter(seed, NgramCache(10**5)),
    "TLI": lambda seed: mapped_drafter(seed, None, shared_only=True),
    "nonsense": lambda seed: NonsenseDrafter(N_VOCAB, seed=seed),
}


def run(
    backend: TableBackend,
    drafter: Drafter,
    prompt: Sequence[int] = PROMPT,
    sampling: Sampling = GREEDY,
    *,
    n_draft: int = 4,
    max_new: int = 60,
    stop: frozenset[int] = frozenset(),
) -> list[RoundResult]:
    keep_common_prefix(backend, prompt, len(prompt) - 1)
    drafter.begin(prompt, sampling=sampling)
    return list(generate(backend, drafter, prompt, sampling, n_draft=n_draft, max_new=max_new, stop=stop))


def tokens_of(steps: Sequence[RoundResult]) -> list[int]:
    return [token for step in steps for token in step.tokens]


@pytest.mark.parametrize("n_draft", [0, 1, 4, 9])
@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_output_is_the_same_with_every_drafter(name: str, n_draft: int) -> None:
    for seed in range(8):
        table = random_table(N_VOCAB, seed)
        wanted = tokens_of(run(TableBackend(table), NoDrafter()))
        backend = TableBackend(table)
        steps = run(backend, DRAFTERS[name](seed), n_draft=n_draft)
        assert tokens_of(steps) == wanted
        assert backend.tokens == [*PROMPT, *wanted][:-1]
        assert all(step.n_accepted <= step.n_drafted <= n_draft for step in steps)
        assert all(len(step.tokens) == step.n_accepted + 1 for step in steps)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    name=st.sampled_from(sorted(DRAFTERS)),
    prompt=st.lists(st.integers(0, N_VOCAB - 2), min_size=1, max_size=30),
    n_draft=st.integers(0, 12),
    max_new=st.integers(0, 40),
    n_ctx=st.integers(30, 80),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_greedy_output_is_the_same_for_any_table(
    seed: int, name: str, prompt: list[int], n_draft: int, max_new: int, n_ctx: int, penalty: float
) -> None:
    table, sampling = random_table(N_VOCAB, seed), Sampling(repeat_penalty=penalty, repeat_last_n=5)
    stop = frozenset({8})
    plain, backend = TableBackend(table, n_ctx=n_ctx), TableBackend(table, n_ctx=n_ctx)
    wanted = tokens_of(run(plain, NoDrafter(), prompt, sampling, max_new=max_new, stop=stop))
    steps = run(backend, DRAFTERS[name](seed), prompt, sampling, n_draft=n_draft, max_new=max_new, stop=stop)
    assert tokens_of(steps) == wanted
    assert backend.tokens == [*prompt, *wanted][:-1]
    assert len(prompt) + len(wanted) <= max(n_ctx, len(prompt))


def test_a_drafter_that_knows_the_target_is_accepted_whole() -> None:
    steps = run(TableBackend(random_table(N_VOCAB, 3)), alone(model_drafter(3)), n_draft=4, max_new=50)
    assert [len(step.tokens) for step in steps] == [5] * 10


def test_a_translating_drafter_is_accepted_where_it_is_right() -> None:
    """Both models write "ab ab ab ...", in their own tokens."""
    target, draft = np.zeros((N_VOCAB,) * 3, np.float32), np.zeros((len(DRAFT),) * 3, np.float32)
    target[:, 4, 1] = target[:, 1, 4] = 9.0  # " a", "b"
    draft[:, 7, 7] = 9.0  # " ab"
    backend = TableBackend(target)
    steps = run(
        backend,
        alone(TranslatingDrafter(TableBackend(draft), draft_vocabulary(), target_vocabulary(), 8)),
        [4, 1, 4, 1],
        max_new=80,
    )
    assert target_vocabulary().decode(backend.tokens).startswith(b" ab ab ab ab")
    assert sum(step.n_accepted for step in steps) >= 40


def test_a_stop_token_ends_the_output_inside_an_accepted_draft() -> None:
    table = random_table(N_VOCAB, 5)
    free = tokens_of(run(TableBackend(table), NoDrafter(), max_new=40))
    for place in range(1, 20):
        stop = frozenset({free[place]})
        n_wanted = free.index(free[place]) + 1
        backend = TableBackend(table)
        steps = run(backend, alone(model_drafter(5)), n_draft=9, max_new=40, stop=stop)
        assert tokens_of(steps) == free[:n_wanted]
        assert backend.tokens == [*PROMPT, *free[: n_wanted - 1]]
        assert all(step.n_accepted <= len(step.tokens) for step in steps)


@pytest.mark.parametrize("name", DRAFTERS)
def test_the_context_is_filled_and_never_overrun(name: str) -> None:
    for n_ctx in range(len(PROMPT) + 1, len(PROMPT) + 14):
        backend = TableBackend(random_table(N_VOCAB, 1), n_ctx=n_ctx)
        steps = run(backend, DRAFTERS[name](1), n_draft=9, max_new=1000)
        assert len(PROMPT) + len(tokens_of(steps)) == n_ctx


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ContextFull):
        run(TableBackend(random_table(N_VOCAB), n_ctx=8), NoDrafter(), [1] * 10)


def test_drafts_never_exceed_the_rows_that_the_backend_returns() -> None:
    backend = TableBackend(random_table(N_VOCAB, 2), max_outputs=3)
    steps = run(backend, alone(model_drafter(2)), n_draft=9)
    assert max(step.n_drafted for step in steps) == 2


@pytest.mark.parametrize("name", DRAFTERS)
def test_closing_at_any_yield_leaves_the_backend_usable(name: str) -> None:
    table = random_table(N_VOCAB, 7)
    wanted = tokens_of(run(TableBackend(table), NoDrafter(), max_new=30))
    for n_steps in range(1, 8):
        backend, drafter = TableBackend(table), DRAFTERS[name](7)
        drafter.begin(PROMPT)
        steps = generate(backend, drafter, PROMPT, GREEDY, n_draft=4, max_new=30)
        said = tokens_of([step for _, step in zip(range(n_steps), steps, strict=False)])
        steps.close()
        assert backend.tokens == [*PROMPT, *said][:-1]
        rest = run(backend, drafter, [*PROMPT, *said], max_new=30 - len(said))
        assert said + tokens_of(rest) == wanted


def test_plain_decoding_is_one_pass_a_token() -> None:
    backend = TableBackend(random_table(N_VOCAB, 0))
    run(backend, NoDrafter(), max_new=20)
    assert backend.n_passes == 21  # the prompt's is the other


def test_nothing_is_generated_when_nothing_is_asked_for() -> None:
    backend = TableBackend(random_table(N_VOCAB, 0))
    assert run(backend, NoDrafter(), max_new=0) == []
    assert backend.tokens == PROMPT[:-1]


@pytest.mark.parametrize("name", ["model", "translating", "controller"])
def test_a_drafter_reads_what_is_new_and_no_more(name: str) -> None:
    """Nothing that grows with the context is done in a round."""
    prompt = PROMPT * 40
    backends = {
        "model": TableBackend(random_table(N_VOCAB, 1)),
        "translating": TableBackend(random_table(len(DRAFT), 1)),
    }
    translating = TranslatingDrafter(backends["translating"], draft_vocabulary(), target_vocabulary(), 8)
    drafter = alone(ModelDrafter(backends["model"]) if name == "model" else translating)
    drafter = adaptive(1, model=translating) if name == "controller" else drafter
    backend = backends["model" if name == "model" else "translating"]
    drafter.begin(prompt)
    steps = list(generate(TableBackend(random_table(N_VOCAB, 9)), drafter, prompt, GREEDY, n_draft=4, max_new=100))
    assert backend.n_read <= len(prompt) * 2 + len(steps) * (4 * 4 + 16 + 1)


@pytest.mark.parametrize(("can_shift", "n_most"), [(True, 500), (False, 1000)])
def test_a_window_slides_and_is_not_read_again_where_it_can_be_shifted(can_shift: bool, n_most: int) -> None:
    backend = TableBackend(random_table(N_VOCAB, 9), n_ctx=96)
    backend.can_shift = can_shift
    drafter = alone(ModelDrafter(backend))
    prompt = PROMPT * 80
    drafter.begin(prompt)
    steps = list(generate(TableBackend(random_table(N_VOCAB, 9)), drafter, prompt, GREEDY, n_draft=4, max_new=300))
    assert all(step.n_accepted == step.n_drafted == 4 for step in steps[:-1])  # its window is enough, and stays true
    assert backend.n_read <= n_most
    assert len(backend.tokens) <= backend.n_ctx


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0, 30.0])
def test_a_drafters_confidence_is_that_of_the_whole_row(spread: float) -> None:
    row = np.random.default_rng(0).normal(0.0, spread, 50_000).astype(np.float32)
    row[::7] = -np.inf
    p = np.exp(row.astype(np.float64) - row.max())
    p /= p.sum()
    entropy = -(p[p > 0.0] * np.log(p[p > 0.0])).sum()
    assert top_of(row) == (int(row.argmax()), pytest.approx(p.max(), rel=1e-3), pytest.approx(entropy, abs=0.02))
