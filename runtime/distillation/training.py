"""Training of a drafter's scales on lessons: batches, Adam, a schedule, a state that can be gone on with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.memory import files
from edgellm.memory.quantised import Floats
from edgellm.memory.sealed import Damaged, seal, unseal
from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.network import Network
from edgellm.runtime.distillation.rows import Gradients

_CHECKPOINT, _VERSION = "training", 1
_RAISED = np.float32(4096)  # what moments are multiplied by, so that half precision holds them
_SORTED_TOGETHER = 64  # samples that are sorted by length before they are packed


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train. The rate is of the numbers relative to their block's scale: 1e-3 moves one by a thousandth."""

    learning_rate: float = 1e-3
    batch_tokens: int = 1000  # answer tokens of a step
    rows_at_once: int = 512  # tokens that a thread holds the activations of
    n_threads: int = 1
    n_warm_up: int = 8  # steps over which the rate rises
    last_rate: float = 0.05  # of the rate, at the end of its cosine
    beta_1: float = 0.9
    beta_2: float = 0.99
    clip: float = 1.0  # the largest norm of a step's gradient
    seconds: float | None = None  # the rate falls to its end in this time, where the lessons would take longer
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """Where training stands, after a step."""

    n_done: int
    n_steps: int
    n_tokens: int  # of answers, so far
    loss: float  # of this step, nats a token
    agreement: float  # of this step, before it learnt from it
    tokens_per_s: float  # of answers


class Adam:
    """Adam (arXiv:1412.6980) over named arrays."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings, self.n_steps = settings, 0
        self.moments: dict[str, tuple[Floats, Floats]] = {}

    def changes(self, slopes: dict[str, Floats], rate: float) -> dict[str, Floats]:
        """What each array moves by."""
        beta_1, beta_2 = self._settings.beta_1, self._settings.beta_2
        self.n_steps += 1
        norm = math.sqrt(sum(float(np.vdot(slope, slope)) for slope in slopes.values()))
        shrink = np.float32(min(1.0, self._settings.clip / (norm + 1e-9)))
        rate *= math.sqrt(1 - beta_2**self.n_steps) / (1 - beta_1**self.n_steps)
        moved: dict[str, Floats] = {}
        for name, slope in slopes.items():
            slope = slope * shrink
            first, second = self.moments.setdefault(name, (np.zeros_like(slope), np.zeros_like(slope)))
            first += np.float32(1 - beta_1) * (slope - first)
            second += np.float32(1 - beta_2) * (slope * slope - second)
            move = -rate * first / (np.sqrt(second) + 1e-8)
            moved[name] = move.astype(np.float32, copy=False)
        return moved


def batches(samples: Sequence[Sample], settings: TrainingSettings) -> list[list[list[Sample]]]:
    """Steps of about `batch_tokens` answer tokens, each cut into parts of at most `rows_at_once` tokens."""
    rng = np.random.default_rng(settings.seed)
    order = rng.permutation(len(samples)).tolist()
    parts: list[list[Sample]] = []
    for start in range(0, len(order), _SORTED_TOGETHER):
        chunk = sorted((samples[i] for i in order[start : start + _SORTED_TOGETHER]), key=lambda one: one.n_tokens)
        parts += _packed(chunk, settings.rows_at_once)
    parts = [parts[i] for i in rng.permutation(len(parts)).tolist()]
    steps: list[list[list[Sample]]] = [[]]
    n_tokens = 0
    for part in parts:
        if n_tokens >= settings.batch_tokens:
            steps.append([])
            n_tokens = 0
        steps[-1].append(part)
        n_tokens += sum(len(sample.answer) for sample in part)
    return [step for step in steps if step]


def _packed(samples: Sequence[Sample], n_rows: int) -> list[list[Sample]]:
    packed: list[list[Sample]] = []
    room = 0
    for sample in samples:
        if not packed or sample.n_tokens > room:
            packed.append([])
            room = n_rows
        packed[-1].append(sample)
        room -= sample.n_tokens
    return packed


def train(
    network: Network,
    samples: Sequence[Sample],
    settings: TrainingSettings,
    *,
    on_step: Callable[[Step], bool] = lambda step: True,
    checkpoint: Path | None = None,
) -> None:
    """One epoch over the samples; the network then holds what was learnt.

    Args:
        on_step: told of each step; False ends it there.
        checkpoint: where the state is kept after each step that `on_step` ended, and gone on from: it is of these very
            samples, settings and weights.

    Raises:
        OSError: the checkpoint could not be written.
    """
    steps, adam = batches(samples, settings), Adam(settings)
    key = f"{len(samples)} {sum(one.n_tokens for one in samples)} {settings}"
    n_done = _resume(network, adam, checkpoint, key)
    started, n_tokens = time.perf_counter(), 0
    with ThreadPoolExecutor(settings.n_threads) as threads:
        for n, step in enumerate(steps[n_done:], n_done + 1):
            found = Gradients()
            for part in threads.map(network.gradients, step):
                found.add(part)
            n_tokens += found.n_tokens
            spent = time.perf_counter() - started
            slopes = {name: slope / np.float32(found.n_tokens) for name, slope in found.thetas.items()}
            done = n / len(steps)
            if settings.seconds is not None:
                done = max(done, spent / settings.seconds)
            moved = adam.changes(slopes, settings.learning_rate * rate_at(n, done, settings))
            network.take({name: network.matrices[name].theta + move for name, move in moved.items()})
            report = Step(
                n, len(steps), n_tokens, found.loss / found.n_tokens, found.n_right / found.n_tokens, n_tokens / spent
            )
            if not on_step(report):
                if checkpoint is not None:
                    save(network, adam, checkpoint, key)
                return
            if done >= 1:
                break
    if checkpoint is not None:
        files.discard(checkpoint)


def rate_at(n_step: int, done: float, settings: TrainingSettings) -> float:
    """Of the rate, at a step and at a share of the way."""
    rising = min(1.0, n_step / settings.n_warm_up)
    return rising * max(settings.last_rate, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def save(network: Network, adam: Adam, path: Path, key: str) -> None:
    """Write the state of a training. Raises OSError."""
    halves: list[bytes] = []
    for name, theta in network.changes().items():
        first, second = adam.moments.get(name, (np.zeros_like(theta), np.zeros_like(theta)))
        for array in (theta, first * _RAISED, np.sqrt(second) * _RAISED):
            halves.append(array.astype("<f2").tobytes())
    payload = adam.n_steps.to_bytes(8, "little") + b"".join(halves)
    files.write(path, seal(payload, _CHECKPOINT, _VERSION, key), private=True)


def _resume(network: Network, adam: Adam, path: Path | None, key: str) -> int:
    """Steps that a kept state has behind it; 0 without one that is of these samples."""
    states = network.changes()
    n_bytes = 8 + 6 * sum(theta.size for theta in states.values())
    try:
        data = path.read_bytes() if path is not None else b""
        payload = unseal(data, _CHECKPOINT, _VERSION, key, max_bytes=n_bytes)
    except (FileNotFoundError, Damaged):
        return 0
    if len(payload) != n_bytes:
        return 0
    values, start = np.frombuffer(payload, "<f2", offset=8), 0
    moved: dict[str, Floats] = {}
    for name, theta in states.items():
        parts = values[start : start + 3 * theta.size].astype(np.float32).reshape(3, *theta.shape)
        start += parts.size
        moved[name] = parts[0]
        adam.moments[name] = (parts[1] / _RAISED, (parts[2] / _RAISED) ** 2)
    network.take(moved)
    adam.n_steps = int.from_bytes(payload[:8], "little")
    return adam.n_steps
