"""Sampled output follows the target's distribution, whoever drafts and however tokens are chosen."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fakes import NonsenseDrafter, PieceTokenizer, TableBackend, alone, byte_vocabulary, random_table
from numpy.typing import NDArray

from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import Draft, Drafter, NoDrafter
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.drafters.own_draft import merged_probs
from edgellm.runtime.drafters.retokenizers import MapRetokenizer
from edgellm.runtime.drafters.translating import TranslatingDrafter
from edgellm.runtime.learning.costs import Costs, assumed
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.learning.ngrams import NgramCache
from edgellm.runtime.sampling import BadSampling, Distribution, Sampling, certain
from edgellm.runtime.text.vocabulary import Vocabulary
from edgellm.runtime.verify import verify

N_VOCAB = 6
TARGET = random_table(N_VOCAB, 11, scale=1.2)
RELATED = TARGET + random_table(N_VOCAB, 12, scale=0.7)  # a drafter that is often right


def adaptive(**options: Any) -> AdaptiveDrafter:
    costs = Costs(assumed(1.0, 0.05), assumed(0.1, 0.05))
    return AdaptiveDrafter(TableBackend(TARGET), costs, **{"conversation": NgramIndex(256)} | options)


def mapped(cache: NgramCache) -> Drafter:
    """The related model with the same bytes under other ids; drafts are drawn and come with their probabilities."""
    order = [3, 5, 0, 1, 4, 2]
    table = RELATED[np.ix_(order, order, order)]
    target = Vocabulary(PieceTokenizer([b"%d" % i for i in range(N_VOCAB)]))
    own = Vocabulary(PieceTokenizer([b"%d" % i for i in order]))
    retokenizer = MapRetokenizer(own, target, cache)
    return alone(
        TranslatingDrafter(
            TableBackend(table), own, target, None, retokenizer=retokenizer, cache=cache, merged_probs=True
        )
    )


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "none": NoDrafter,
    "copy": lambda: adaptive(fixed=4),
    "store": lambda: adaptive(conversation=None, store=NgramIndex(512), fixed=4),
    "model": lambda: alone(ModelDrafter(TableBackend(RELATED))),
    "itself": lambda: alone(ModelDrafter(TableBackend(TARGET))),
    "partly different": lambda: alone(ModelDrafter(TableBackend(RELATED), frozenset({0, 4}))),
    "smaller vocabulary": lambda: alone(ModelDrafter(TableBackend(RELATED[:4, :4, :4].copy()))),
    "all, fixed": lambda: adaptive(fixed=4, model=ModelDrafter(TableBackend(RELATED)), store=NgramIndex(512)),
    "controller": lambda: adaptive(model=ModelDrafter(TableBackend(RELATED)), store=NgramIndex(512)),
    "controller, itself": lambda: adaptive(model=ModelDrafter(TableBackend(TARGET))),
    "entropy rule": lambda: adaptive(fixed=4, stop="entropy", model=ModelDrafter(TableBackend(RELATED))),
    "mapped": lambda: mapped(NgramCache(10**5)),
    "given nonsense": lambda: NonsenseDrafter(N_VOCAB),
    "drawn nonsense": lambda: NonsenseDrafter(N_VOCAB, probs=True),
}
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
SETTINGS: dict[str, dict[str, float]] = {
    "plain": PLAIN,
    "temperature": PLAIN | {"temperature": 0.6},
    "top-n-sigma": PLAIN | {"top_n_sigma": 1.2},
    "top-k": PLAIN | {"top_k": 3},
    "top-p": PLAIN | {"top_p": 0.8},
    "min-p": PLAIN | {"min_p": 0.15},
    "penalty": PLAIN | {"repeat_penalty": 1.5, "repeat_last_n": 2},
    "occurrences": PLAIN | {"presence_penalty": 0.8, "frequency_penalty": -0.4, "repeat_last_n": 2},
    "all": {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.2, "repeat_last_n": 2},
}


def reference(logits: NDArray[np.float32], history: tuple[int, int], settings: dict[str, float]) -> NDArray[np.float64]:
    """The stages one by one over a dense vector, as slowly as can be."""
    values = [float(x) for x in logits]
    penalty = settings.get("repeat_penalty", 1.0)
    for token in set(history):
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token in history:
        values[token] -= settings.get("frequency_penalty", 0.0)
    for token in set(history):
        values[token] -= settings.get("presence_penalty", 0.0)
    ranked = sorted(range(len(values)), key=lambda i: -values[i])
    if n := settings.get("top_n_sigma"):
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        ranked = [i for i in ranked if values[i] >= max(values) - n * deviation]
    if settings["top_k"]:
        ranked = ranked[: int(settings["top_k"])]
    weights = {i: math.exp(values[i]) for i in ranked}
    total = sum(weights.values())
    kept, mass = [], 0.0
    for i in ranked:
        if mass < settings["top_p"] and weights[i] >= settings["min_p"] * weights[ranked[0]]:
            kept.append(i)
        mass += weights[i] / total
    probs = np.zeros(len(values))
    for i in kept:
        probs[i] = math.exp(values[i] / settings["temperature"])
    return probs / probs.sum()


def chi_square(observed: NDArray[np.float64], expected: NDArray[np.float64]) -> tuple[float, int]:
    """Sum over the cells worth counting, and its degrees of freedom."""
    counted = expected >= 5
    statistic = ((observed[counted] - expected[counted]) ** 2 / expected[counted]).sum()
    return float(statistic), max(0, int(counted.sum()) - 1)


def deviation(statistic: float, degrees: int) -> float:
    """A chi-square value as standard deviations of a normal variable (Wilson and Hilferty 1931)."""
    part = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - (1 - part)) / math.sqrt(part)


def sampled(drafter: Drafter, settings: dict[str, float], n_tokens: int, seed: int = 1) -> list[int]:
    sampling = Sampling(**settings, seed=seed)  # type: ignore[arg-type]
    backend, prompt = TableBackend(TARGET, n_ctx=n_tokens + 10), [0, 1]
    drafter.begin(prompt, sampling=sampling)
    steps = generate(backend, drafter, prompt, sampling, n_draft=4, max_new=n_tokens)
    return prompt + [token for step in steps for token in step.tokens]


def assert_drawn_from_target(tokens: list[int], settings: dict[str, float]) -> None:
    followers: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for before, last, token in zip(tokens, tokens[1:], tokens[2:], strict=False):
        followers[before, last][token] += 1
    statistic, degrees = 0.0, 0
    for context, counts in followers.items():
        p = reference(TARGET[context], context, settings)
        observed = np.array([counts[token] for token in range(N_VOCAB)], float)
        assert not observed[p == 0.0].any()  # what is filtered out never comes
        part, n = chi_square(observed, p * observed.sum())
        statistic, degrees = statistic + part, degrees + n
    assert degrees >= 20
    assert abs(deviation(statistic, degrees)) < 3.5


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("setting", ["plain", "all"])
def test_every_drafter_keeps_the_targets_distribution(name: str, setting: str) -> None:
    assert_drawn_from_target(sampled(DRAFTERS[name](), SETTINGS[setting], 10_000), SETTINGS[setting])


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name not in ("plain", "all")])
@pytest.mark.parametrize("name", ["none", "model"])
def test_every_setting_keeps_the_distribution_that_it_describes(name: str, setting: str) -> None:
    assert_drawn_from_target(sampled(DRAFTERS[name](), SETTINGS[setting], 6_000), SETTINGS[setting])


@pytest.mark.parametrize("name", ["model", "partly different", "controller", "all, fixed"])
def test_the_first_tokens_of_many_seeds_follow_the_distribution(name: str) -> None:
    """Drafting and checking draw from streams that do not depend on each other, from the first token on."""
    n = 3_000
    pairs = Counter(tuple(sampled(DRAFTERS[name](), PLAIN, 2, seed)[2:]) for seed in range(n))
    first = reference(TARGET[0, 1], (0, 1), PLAIN)
    joint = np.array([first[a] * reference(TARGET[1, a], (1, a), PLAIN) for a in range(N_VOCAB)]) * n
    observed = np.array([[pairs[a, b] for b in range(N_VOCAB)] for a in range(N_VOCAB)], float)
    assert abs(deviation(*chi_square(observed, joint))) < 3.5


def test_a_related_drafter_with_probabilities_is_accepted_more_often_than_nonsense() -> None:
    def acceptance(drafter: Drafter) -> float:
        sampling = Sampling(**PLAIN, seed=0)  # type: ignore[arg-type]
        drafter.begin([0, 1], sampling=sampling)
        steps = list(generate(TableBackend(TARGET), drafter, [0, 1], sampling, n_draft=4, max_new=1500))
        return sum(step.n_accepted for step in steps) / sum(step.n_drafted for step in steps)

    assert acceptance(DRAFTERS["itself"]()) > 0.999
    assert acceptance(DRAFTERS["model"]()) > acceptance(DRAFTERS["drawn nonsense"]()) + 0.15


def test_a_seed_gives_the_same_tokens_again() -> None:
    for name in DRAFTERS:
        assert sampled(DRAFTERS[name](), PLAIN, 200, 5) == sampled(DRAFTERS[name](), PLAIN, 200, 5)
    assert sampled(NoDrafter(), PLAIN, 200, 5) != sampled(NoDrafter(), PLAIN, 200, 6)


def dense(probs: list[float]) -> Distribution:
    return Distribution(np.arange(len(probs)), np.array(probs))


def test_equal_distributions_accept_everything() -> None:
    p = dense([0.2, 0.5, 0.3])
    for seed in range(200):
        rng = np.random.default_rng(seed)
        draft = Draft([p.draw(rng), p.draw(rng)], [p, p])
        assert verify(lambda i: p, draft, rng)[0] == 2


def test_a_certain_target_accepts_its_token_and_replaces_any_other() -> None:
    rng = np.random.default_rng(0)
    for q in (None, [dense([0.0, 0.5, 0.5])], [certain(2)]):
        assert verify(lambda i: certain(1), Draft([2], q), rng) == (0, 1)
    assert verify(lambda i: certain(1), Draft([1], [dense([0.0, 0.5, 0.5])]), rng) == (1, 1)
    assert verify(lambda i: certain(1), Draft([1]), rng) == (1, 1)


def test_a_token_that_the_target_excludes_is_never_accepted() -> None:
    p = Distribution(np.array([4, 0]), np.array([0.75, 0.25]))  # ids need not be in order
    for seed in range(300):
        n_accepted, token = verify(lambda i: p, Draft([2]), np.random.default_rng(seed))
        assert n_accepted == 0
        assert token in (0, 4)


def test_the_target_is_asked_in_order_and_no_further_than_needed() -> None:
    asked: list[int] = []

    def target(i: int) -> Distribution:
        asked.append(i)
        return certain([7, 8, 9, 9][i])

    assert verify(target, Draft([7, 5, 9]), np.random.default_rng(0)) == (1, 8)
    assert asked == [0, 1]


def test_probabilities_are_found_whatever_the_order_of_ids() -> None:
    p = Distribution(np.array([9, 2, 5]), np.array([0.5, 0.2, 0.3]))
    assert [p.of(token) for token in (2, 5, 9, 1)] == [0.2, 0.3, 0.5, 0.0]
    assert p.at(np.array([1, 9, 2, 100])).tolist() == [0.0, 0.5, 0.2, 0.0]


def test_greedy_is_the_likeliest_token_after_the_penalty() -> None:
    logits = np.array([1.0, 2.0, 1.9, -1.0], np.float32)
    assert Sampling().distribution(logits, []).ids.tolist() == [1]
    assert Sampling(repeat_penalty=1.5).distribution(logits, [1, 1, 3]).ids.tolist() == [2]
    assert Sampling(repeat_penalty=1.5, repeat_last_n=1).distribution(logits, [1, 3]).ids.tolist() == [1]
    assert logits.tolist() == pytest.approx([1.0, 2.0, 1.9, -1.0])  # the engine's own buffer stays as it is


@pytest.mark.parametrize("temperature", [1e-310, 1e-30, 1e-3, 100.0])
def test_extreme_temperatures_give_probabilities(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)
    p = sampling.distribution(np.array([-3.0, 40.0, 39.0], np.float32), [])
    assert p.probs.sum() == pytest.approx(1.0)
    assert p.of(1) == pytest.approx(1.0 if temperature < 1 else 0.4, abs=0.1)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 2.0},
        {"repeat_penalty": 0.0},
        {"repeat_last_n": -1},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(BadSampling, match=next(iter(settings))):
        Sampling(**settings)  # type: ignore[arg-type]


def test_a_merged_token_has_the_product_which_its_first_part_loses() -> None:
    """OmniDraft's equations 1 and 2."""
    own, target = byte_vocabulary(b"fl", b"ake"), byte_vocabulary(b"flake", b"fl")
    cache = NgramCache(10**5)
    cache.learn([256, 257], 256)
    direct = np.array(MapRetokenizer(own, target, cache).direct)
    first = Distribution(np.array([256, 97, 257]), np.array([0.5, 0.3, 0.2]))
    second = Distribution(np.array([257, 98]), np.array([0.4, 0.6]))
    q = merged_probs(direct, 256, [256, 257], [first, second])
    assert q.of(256) == pytest.approx(0.5 * 0.4)
    assert q.of(257) == pytest.approx(0.5 - 0.5 * 0.4)  # "fl" alone
    assert q.of(97) == pytest.approx(0.3)
    assert q.probs.sum() == pytest.approx(0.8)  # "ake" has no counterpart
