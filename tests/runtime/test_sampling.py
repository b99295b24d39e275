"""The parameters are one table, and the stages make of logits what they always made."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
from typing import Any

import llama_cpp as api
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgellm.memory.sampling_parameters import PARAMETERS
from edgellm.runtime.sampling import BadSampling, Sampling


def in_one_piece(sampling: Sampling, logits: NDArray[np.float32], history: list[int]) -> tuple[Any, Any]:
    """The same arithmetic without stages: ids and probabilities."""
    if sampling.repeat_penalty != 1.0 and sampling.repeat_last_n:
        seen = np.unique(np.asarray(history[-sampling.repeat_last_n :], np.int64))
        logits = logits.copy()
        logits[seen] = np.where(
            logits[seen] > 0, logits[seen] / sampling.repeat_penalty, logits[seen] * sampling.repeat_penalty
        )
    if sampling.temperature == 0.0:
        return np.array([logits.argmax()]), np.ones(1)
    if 0 < sampling.top_k < len(logits):
        ids = np.argpartition(logits, -sampling.top_k)[-sampling.top_k :].astype(np.int64)
    else:
        ids = np.arange(len(logits))
    kept = logits[ids].astype(np.float64)
    if sampling.top_p < 1.0 or sampling.min_p > 0.0:
        probs = softmax(kept, 1.0)
        keep = probs >= sampling.min_p * probs.max()
        if sampling.top_p < 1.0:
            order = np.argsort(-probs, kind="stable")
            before = np.cumsum(probs[order]) - probs[order]
            keep[order[before >= sampling.top_p]] = False
        ids, kept = ids[keep], kept[keep]
    return ids, softmax(kept, sampling.temperature)


def softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        weights: NDArray[np.float64] = np.exp((logits - logits.max()) / temperature)
    weights /= weights.sum()
    return weights


def by_llama_cpp(logits: NDArray[np.float32], n: float) -> list[int]:
    """The ids that the engine's own top-n-sigma keeps."""
    data = (api.llama_token_data * len(logits))(*((i, float(logit), 0.0) for i, logit in enumerate(logits)))
    candidates = api.llama_token_data_array(data, len(logits), -1, False)
    sampler = api.llama_sampler_init_top_n_sigma(n)
    try:
        api.llama_sampler_apply(sampler, ctypes.byref(candidates))
        return sorted(candidates.data[i].id for i in range(candidates.size) if math.isfinite(candidates.data[i].logit))
    finally:
        api.llama_sampler_free(sampler)


@pytest.mark.parametrize("n", [0.5, 1.0, 2.0, 5.0, 100.0])
@pytest.mark.parametrize("n_vocab", [2, 7, 5000])
def test_top_n_sigma_keeps_what_llama_cpps_own_keeps(n: float, n_vocab: int) -> None:
    logits = (np.random.default_rng(n_vocab).standard_normal(n_vocab) * 3).astype(np.float32)
    sampling = Sampling(temperature=0.8, top_n_sigma=n, top_k=0, top_p=1.0, min_p=0.0)
    assert sorted(sampling.distribution(logits, []).ids.tolist()) == by_llama_cpp(logits, n)


def test_top_n_sigma_keeps_the_same_tokens_at_any_temperature() -> None:
    logits = np.array([5, 4, 1, 0, 0], np.float32)
    for temperature in (0.1, 1.0, 50.0):
        sampling = Sampling(temperature=temperature, top_n_sigma=1.0, top_k=0, top_p=1.0, min_p=0.0)
        assert sampling.distribution(logits, []).ids.tolist() == [0, 1]


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-30, 0.3, 0.8, 1.0, 2.0, 100.0]),
        "top_k": st.sampled_from([0, 1, 2, 5, 40, 1000]),
        "top_p": st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.95, 1.0]) | st.floats(0.01, 1.0),
        "min_p": st.sampled_from([0.0, 0.05, 0.5, 1.0]) | st.floats(0.0, 1.0),
        "repeat_penalty": st.sampled_from([0.5, 1.0, 1.1, 3.0]),
        "repeat_last_n": st.sampled_from([0, 1, 3, 64]),
    }
)


@given(SETTINGS, st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 7, 60, 700]), st.booleans())
def test_stages_give_the_same_bits_as_one_piece(
    settings: dict[str, Any], seed: int, n_vocab: int, has_ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(n_vocab) * 4).astype(np.float32)
    if has_ties:
        logits = np.round(logits)
    history = rng.integers(0, n_vocab, 20).tolist()
    before = logits.copy()
    sampling = Sampling(**settings)
    ids, probs = in_one_piece(sampling, logits, history)
    made = sampling.distribution(logits, history)
    assert made.ids.tolist() == ids.tolist()
    assert made.probs.tobytes() == probs.tobytes()
    assert (logits == before).all()


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (-2.0, 0.7)])
def test_penalties_of_occurrences_are_llama_cpps(frequency: float, presence: float) -> None:
    rng = np.random.default_rng(3)
    logits, history = (rng.standard_normal(50) * 3).astype(np.float32), rng.integers(0, 50, 40).tolist()
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_last_n": 30}
    settings |= {"repeat_penalty": 1.2, "frequency_penalty": frequency, "presence_penalty": presence}
    data = (api.llama_token_data * len(logits))(*((i, float(logit), 0.0) for i, logit in enumerate(logits)))
    candidates = api.llama_token_data_array(data, len(logits), -1, False)
    sampler = api.llama_sampler_init_penalties(50, 30, 1.2, frequency, presence)
    try:
        for token in history:
            api.llama_sampler_accept(sampler, token)
        api.llama_sampler_apply(sampler, ctypes.byref(candidates))
        expected = softmax(np.array([candidates.data[i].logit for i in range(candidates.size)]), 1.0)
    finally:
        api.llama_sampler_free(sampler)
    assert Sampling(**settings).distribution(logits, history).probs == pytest.approx(expected, rel=1e-5)


def test_a_bias_bans_and_forces_tokens_and_leaves_the_logits() -> None:
    logits = np.array([3, 2, 1], np.float32)
    assert Sampling(logit_bias=((0, -100.0),)).distribution(logits, []).ids.tolist() == [1]
    assert Sampling(logit_bias=((2, 100.0), (0, 1.0))).distribution(logits, []).ids.tolist() == [2]
    assert logits.tolist() == [3, 2, 1]


@pytest.mark.parametrize("bias", [((1, 1.0), (1, 2.0)), ((0, 101.0),), ((-1, 0.0),), ((0, math.nan),)])
def test_a_bias_that_means_nothing_is_refused(bias: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(BadSampling, match="logit_bias"):
        Sampling(logit_bias=bias)


def test_every_field_is_a_row_with_a_help_and_a_default_in_range() -> None:
    assert [field.name for field in dataclasses.fields(Sampling)] == [*PARAMETERS, "logit_bias"]
    for parameter in PARAMETERS.values():
        assert parameter.check(parameter.default) == parameter.default
        assert parameter.help.endswith(".")
        assert parameter.low < parameter.high


@pytest.mark.parametrize("name", PARAMETERS)
def test_values_at_and_beyond_the_range_are_told_apart(name: str) -> None:
    row = PARAMETERS[name]
    low, high = row.kind(row.low), row.kind(min(row.high, 10**12))
    for value in (low, high):
        assert getattr(Sampling(**{name: value}), name) == value
        assert row.read(str(value)) == value
    for value in (low - 1, *([high + 1] if row.high != math.inf else [])):
        with pytest.raises(BadSampling, match=f"{name} .* is out of range"):
            Sampling(**{name: value})


def test_json_comes_back_and_leaves_out_what_it_likes() -> None:
    sampling = Sampling(temperature=0.7, top_k=3, seed=4)
    assert Sampling.from_json(json.loads(json.dumps(sampling.to_json()))) == sampling
    assert Sampling.from_json({}) == Sampling()
    assert type(Sampling.from_json({"temperature": 1}).temperature) is float
    assert Sampling.from_json({"seed": None}).seed is Sampling.from_json({"seed": -1}).seed is None
    assert list(sampling.to_json()) == list(PARAMETERS)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temprature": 1.0}, "there is no sampling parameter temprature: did you mean temperature\\?"),
        ({"zz": 1.0}, "there is no sampling parameter zz: there are temperature, .*, seed"),
        ({"top_k": "many"}, "top_k must be a whole number, not 'many'"),
        ({"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ({"top_k": True}, "top_k must be a whole number, not True"),
        ({"top_p": None}, "top_p must be a number, not None"),
        ({"seed": "x"}, "seed must be a whole number or null, not 'x'"),
        ({"min_p": math.inf}, "min_p inf is out of range: 0 to 1"),
        ([1], r"sampling must be an object of parameters, not \[1\]"),
    ],
    ids=str,
)
def test_json_that_means_nothing_is_refused_in_a_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(BadSampling, match=f"^{sentence}$"):
        Sampling.from_json(values)


def test_the_table_is_read_without_numpy() -> None:
    """`--help` shows it."""
    import subprocess
    import sys

    code = "import sys; import edgellm.memory.sampling_parameters; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
