"""Acceptance is predicted as often as it happens, and learnt from what happens."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from edgellm.runtime.learning.confidence import LogisticHead, MovingAverage


def test_predictions_come_to_mean_what_they_say() -> None:
    rng = np.random.default_rng(0)
    head = LogisticHead([0.0, 0.0], strength=2.0)
    said, happened = [], []
    for i in range(6000):
        x = float(rng.normal())
        accepted = bool(rng.random() < 1 / (1 + math.exp(-(1.5 * x - 0.5))))
        if i > 3000:
            said.append(head.predict([1.0, x]))
            happened.append(accepted)
        head.learn([1.0, x], accepted)
    p, y = np.array(said), np.array(happened)
    for low in np.arange(0.1, 0.9, 0.2):
        part = (p >= low) & (p < low + 0.2)
        assert abs(p[part].mean() - y[part].mean()) < 0.06


def test_what_was_learnt_comes_back() -> None:
    head = LogisticHead([0.1, 0.2])
    for i in range(50):
        head.learn([1.0, float(i % 3)], i % 3 == 0)
    again = LogisticHead([0.0, 0.0])
    again.restore(json.loads(json.dumps(head.to_json())))
    assert again.predict([1.0, 2.0]) == head.predict([1.0, 2.0])


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"weights": [1.0], "squares": [1.0, 1.0]},
        {"weights": [1.0, "x"], "squares": [1.0, 1.0]},
        {"weights": [1.0, math.inf], "squares": [1.0, 1.0]},
        {"weights": [1.0, 1.0], "squares": [0.0, 1.0]},
    ],
)
def test_what_is_no_head_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"number|positive"):
        LogisticHead([0.0, 0.0]).restore(data)


def test_a_rate_follows_what_happens_lately_and_remembers_the_rest() -> None:
    rate = MovingAverage(0.6)
    for _ in range(60):
        rate.add(False)
    assert rate.value < 0.15
    for _ in range(60):
        rate.add(True)
    assert rate.value > 0.65
    assert 0.3 < rate.mean < 0.75
