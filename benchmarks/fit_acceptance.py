"""Fit the weights that the controller's learning begins with, to recorded drafts.

    python benchmarks/fit_acceptance.py TARGET.gguf DRAFTER.gguf RECORDING.jsonl [--holdout 4] [--json OUT]

The recordings (`benchmarks/record.py`) are replayed as `benchmarks/simulate.py` does, at a fixed length, so that every
place is drafted at whatever it costs; each drafted token whose predecessors were right is an example: its features, and
whether the target said it. Every fourth answer is held out; a logistic regression (Newton's method, a ridge of 1) is
fitted to the others. Printed are shipped and fitted weights, and of both the log loss and the AUC on the held-out part.

Shipped weights are `model_weights` and `lookup_weights` of `drafters/tuning.py`. On 26 answers (1,487 tokens) of
Qwen2.5-Coder-1.5B with SmolLM2-135M to prompts of other kinds than they were fitted to, 1,323 and 1,020 examples:

    weights    held out    shipped              fitted
    model      295         0.482, AUC 0.813     0.459, AUC 0.828
    lookup     296         0.422, AUC 0.888     0.446, AUC 0.892

Signs agree but where a feature is rare (an edit that is made again; a provisional token that the cache does not know).
The lookup's shipped weights are the better ones there, and what a pair's model differs by is learnt while it runs: so
the shipped ones stay.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulate import Pair, Recording, curves, read_recordings, replay

from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.tuning import TUNING
from edgellm.runtime.learning.confidence import LogisticHead

N_DRAFT = 8
RIDGE = 1.0
FEATURES = {
    "model_weights": (
        "bias", "logit(top) / 2", "entropy", "provisional, nothing known", "provisional", "logit(p_final) / 2",
        "lookup agrees", "lookup differs",
    ),
    "lookup_weights": (
        "bias", "log2(match)", "log odds of the votes / 2", "log2(places)", "from the store", "match >= 8",
        "alignment: same", "alignment: edit", "alignment: new edit",
    ),
}  # fmt: skip

Example = tuple[str, tuple[float, ...], bool]
"""Answer, features, and whether the token was right."""


class Watched(LogisticHead):
    """A head that writes down what it learns from."""

    def __init__(self, head: LogisticHead, answer: Sequence[str], examples: list[Example]) -> None:
        super().__init__(head.weights)
        self._answer, self._examples = answer, examples

    def learn(self, features: Sequence[float], accepted: bool) -> None:
        self._examples.append((self._answer[-1], tuple(features), accepted))
        super().learn(features, accepted)


def examples_of(pair: Pair, recordings: Sequence[Recording]) -> dict[str, list[Example]]:
    """Of both heads, by the name of their weights."""
    found: dict[str, list[Example]] = defaultdict(list)
    answer: list[str] = []

    def marked() -> Iterator[Recording]:
        for recording in recordings:
            answer.append(recording.id)
            yield recording

    def watch(drafter: AdaptiveDrafter) -> None:
        acceptance = drafter.acceptance
        acceptance.model_head = Watched(acceptance.model_head, answer, found["model_weights"])
        acceptance.lookup_head = Watched(acceptance.lookup_head, answer, found["lookup_weights"])

    flat = curves(None, 40.0, 4.0)["flat"]
    replay(pair, marked(), flat, fixed=N_DRAFT, drafter_made=watch)
    del found["lookup_weights"][:]  # those of places where the model was not better; alone it is asked everywhere
    replay(pair, marked(), flat, model=False, fixed=N_DRAFT, drafter_made=watch)
    return dict(found)


def fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a logistic regression, (n_features,); x (n, n_features), y (n,) of 0 and 1."""
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-x @ weights))
        gradient = x.T @ (p - y) + RIDGE * weights
        curvature = (x * (p * (1.0 - p))[:, None]).T @ x + RIDGE * np.eye(x.shape[1])
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def log_loss(weights: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Nats an example."""
    z = x @ weights
    return float(np.mean(np.logaddexp(0.0, z) - y * z))


def auc(weights: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """P(a right token has the higher score than a wrong one), ties counted half."""
    scores = x @ weights
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    n_right = y.sum()
    n_wrong = len(y) - n_right
    return (
        float((ranks[y > 0].sum() - n_right * (n_right + 1) / 2.0) / (n_right * n_wrong)) if n_right * n_wrong else 0.5
    )


def compare(name: str, examples: Sequence[Example], held_out: set[str]) -> dict[str, Any]:
    """Fit to the examples of all other answers; both rows of weights on those held out."""
    x, y = np.array([e[1] for e in examples]), np.array([float(e[2]) for e in examples])
    test = np.array([e[0] in held_out for e in examples])
    shipped, fitted = np.array(getattr(TUNING, name)), fit(x[~test], y[~test])
    print(f"{name}: {(~test).sum():,} examples to fit, {test.sum():,} held out, {y.mean():.0%} of all right")
    for feature, before, after in zip(FEATURES[name], shipped, fitted, strict=True):
        print(f"  {feature:<28}{before:+7.2f} shipped {after:+7.2f} fitted")
    result: dict[str, Any] = {"weights": [round(float(w), 2) for w in fitted]}
    for which, weights in (("shipped", shipped), ("fitted", fitted)):
        result[which] = {"log_loss": log_loss(weights, x[test], y[test]), "auc": auc(weights, x[test], y[test])}
        print(f"  held out, {which:<8} log loss {result[which]['log_loss']:.4f}, AUC {result[which]['auc']:.4f}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("drafter", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--holdout", type=int, default=4, help="every n-th answer is held out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    target, own = (
        LlamaModel(path, ModelOptions(vocabulary_only=True)).vocabulary
        for path in (arguments.target, arguments.drafter)
    )
    assert target.turn_end is not None
    recordings = read_recordings(arguments.recordings)
    held_out = {recording.id for recording in recordings[:: arguments.holdout]}
    found = examples_of(Pair(target, own, target.turn_end), recordings)
    results = {name: compare(name, examples, held_out) for name, examples in found.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
