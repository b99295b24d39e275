"""Training: it learns what it is shown, sees every sample once, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.network import Network
from edgellm.runtime.distillation.training import Step, TrainingSettings, batches, train

SETTINGS = TrainingSettings(learning_rate=0.02, batch_tokens=40, rows_at_once=64, n_warm_up=2)


def samples(n: int) -> list[Sample]:
    """Answers that repeat one phrase, behind questions that differ."""
    rng, phrase = np.random.default_rng(0), np.tile(np.arange(40, 48, dtype=np.int32), 3)
    return [Sample(rng.integers(0, 256, 3 + i % 5).astype(np.int32), phrase[: 12 + i % 7]) for i in range(n)]


@pytest.fixture
def network(tmp_path: Path) -> Network:
    path = write_tiny(tmp_path / "tiny.gguf", weights="Q4_1", n_layers=2, n_ff=96)
    return Network.open(path)


def test_every_sample_is_learnt_once_in_steps_and_parts_of_the_asked_size() -> None:
    given = samples(23)
    steps = batches(given, SETTINGS)
    parts = [part for step in steps for part in step]
    assert sorted(id(one) for part in parts for one in part) == sorted(map(id, given))
    assert all(sum(one.n_tokens for one in part) <= SETTINGS.rows_at_once for part in parts)
    full = [sum(len(one.answer) for part in step for one in part) for step in steps[:-1]]
    assert min(full) >= SETTINGS.batch_tokens


def test_the_loss_falls_on_what_was_never_shown(network: Network) -> None:
    shown, apart = samples(40), samples(44)[40:]
    before = network.gradients(apart).loss
    train(network, shown, SETTINGS)
    assert network.gradients(apart).loss < 0.9 * before


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, network: Network) -> None:
    given, kept = samples(40), tmp_path / "kept"
    train(network, given, SETTINGS, on_step=lambda step: step.n_done < 4, checkpoint=kept)
    assert kept.exists()
    again = Network.open(tmp_path / "tiny.gguf")
    seen: list[Step] = []
    train(again, given, SETTINGS, on_step=lambda step: seen.append(step) or True, checkpoint=kept)  # type: ignore[func-returns-value]
    assert seen[0].n_done == 5
    assert not kept.exists()
    whole = Network.open(tmp_path / "tiny.gguf")
    train(whole, given, SETTINGS)
    for name, theta in whole.changes().items():
        np.testing.assert_allclose(again.changes()[name], theta, atol=0.05 * np.abs(theta).max())


@pytest.mark.parametrize("damage", [b"", b"nothing of ours", None])
def test_a_kept_state_that_is_damaged_or_anothers_is_begun_anew(
    tmp_path: Path, network: Network, damage: bytes | None
) -> None:
    kept = tmp_path / "kept"
    if damage is None:
        train(network, samples(20), SETTINGS, on_step=lambda step: step.n_done < 2, checkpoint=kept)
    else:
        kept.write_bytes(damage)
    seen: list[Step] = []
    fresh = Network.open(tmp_path / "tiny.gguf")
    train(fresh, samples(21), SETTINGS, on_step=lambda step: seen.append(step) or True, checkpoint=kept)  # type: ignore[func-returns-value]
    assert seen[0].n_done == 1


def test_threads_share_a_step_and_find_the_same(tmp_path: Path) -> None:
    ends = []
    for n_threads in (1, 3):
        network = Network.open(write_tiny(tmp_path / f"{n_threads}.gguf", weights="Q8_0", n_layers=1, n_ff=96))
        train(network, samples(12), TrainingSettings(batch_tokens=60, rows_at_once=32, n_threads=n_threads))
        ends.append(network.changes())
    for name, theta in ends[0].items():
        np.testing.assert_allclose(ends[1][name], theta, atol=2e-4)
