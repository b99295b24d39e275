"""A drafter learns on a GPU what its target said: the scales and minima of its file, as `edgellm adapt` teaches it.

    python benchmarks/gpu/teach.py TARGET.gguf DRAFTER.gguf --names TARGET DRAFTER --licence Apache-2.0
        --lessons FILE.jsonl.gz ... [--judge answers.jsonl ...] [--run scales:rate=2e-3,batch=4000 ...] --out FOLDER

The lessons are those of `talk.py`; an eighth of them is held out. Each --run trains from the beginning, and leaves an
adapter and its curve in FOLDER. What is trained:

    scales    scales and minima
    codes     these, and the codes themselves, rounded as they are used (Q4_0, Q4_1): how much more there would be
    full      all weights of the matrices, in full precision: what no file of this type holds
"""

from __future__ import annotations

import argparse
import json
import random
import time
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from decoder import MATRICES, Decoder
from talk import read
from torch import Tensor

from edgellm.memory import files
from edgellm.memory.draft_adapter import DraftAdapter, quantised_matrix
from edgellm.memory.gguf import GgufHeader, TensorInfo, read_header
from edgellm.memory.quantised import FORMATS
from edgellm.runtime.distillation.curriculum import is_judging
from edgellm.runtime.distillation.judging import Hits, judge
from edgellm.runtime.distillation.lesson import Lesson, Sample
from edgellm.runtime.distillation.pair import open_pair
from edgellm.runtime.distillation.training import TrainingSettings, rate_at

HELD_OUT = 128  # lessons that judge
SORTED_TOGETHER = 512  # samples that are sorted by length before they are padded
MARKS = (10_000, 40_000, 160_000, 640_000, 1_280_000)  # tokens, of a curve


class Trained:
    """A matrix as the sum of what is trained; see `edgellm.memory.quantised`."""

    def __init__(self, header: GgufHeader, tensor: TensorInfo, device: str, kind: str) -> None:
        matrix = quantised_matrix(header, tensor)
        self.kind, self.shape = kind, matrix.shape
        self.start, self.unit = (torch.from_numpy(np.array(one)).to(device) for one in (matrix.start, matrix.unit))
        bases = matrix.format.bases(matrix._blocks)
        n_blocks = self.start.shape[-1]
        self.bases = [
            None if one is None else torch.from_numpy(one).to(device).view(matrix.shape[0], n_blocks, -1)
            for one in bases
        ]
        self.theta = torch.zeros_like(self.start, requires_grad=True)
        self.parameters = [self.theta]
        self.moved: Tensor | None = None
        if kind != "scales":
            first = self.bases[0]
            assert first is not None
            self.moved = torch.zeros(first.shape, device=device, requires_grad=True)
            self.parameters.append(self.moved)
            self.low, self.high = float(first.min()), float(first.max())

    def codes(self) -> Tensor:
        """The first basis, with what was learnt of it; the slope passes the rounding by."""
        first = self.bases[0]
        assert first is not None
        if self.moved is None:
            return first.float()
        wished = first + self.moved
        if self.kind == "full":
            return wished
        return wished + (wished.clamp(self.low, self.high).round() - wished).detach()

    def dense(self) -> Tensor:
        fields = self.start + self.unit * self.theta
        total = fields[0, ..., None] * self.codes()
        if len(fields) > 1:
            total = total + (fields[1, ..., None] if self.bases[1] is None else fields[1, ..., None] * self.bases[1])
        return total.view(self.shape)


class Student:
    """A drafter that is trained."""

    def __init__(self, header: GgufHeader, device: str, kind: str) -> None:
        self.model = Decoder(header, device, torch.float32)
        names = {f"blk.{layer}.{name}.weight" for layer in range(self.model.shape.n_layers) for name in MATRICES}
        self.trained = {
            tensor.name: Trained(header, tensor, device, kind)
            for tensor in header.tensors
            if tensor.name in names and tensor.type in FORMATS
        }

    def renew(self) -> None:
        """Compute the matrices from what is trained."""
        self.model.matrices.update({name: one.dense() for name, one in self.trained.items()})

    def logits(self, batch: Batch) -> Tensor:
        """Of the rows behind which answers come, [n_answers, n_vocab]."""
        turns = self.model.turns(torch.arange(batch.tokens.shape[1], device=batch.tokens.device)[None])
        x = self.model.embed(batch.tokens)
        for layer in range(self.model.shape.n_layers):
            x = self.model.layer(layer, x, turns, self.model.attend_within)
        return self.model.logits(x[batch.answered])

    def groups(self, run: Run) -> list[dict[str, Any]]:
        """For the optimiser, with a rate each."""
        thetas = [one.theta for one in self.trained.values()]
        moved = [one.moved for one in self.trained.values() if one.moved is not None]
        return [{"params": thetas, "scale": run.rate}] + ([{"params": moved, "scale": run.move}] if moved else [])


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples side by side, filled up to the longest."""

    tokens: Tensor  # [n_samples, n]
    answered: Tensor  # [n_samples, n], whether a token of an answer comes behind
    answers: Tensor  # [n_answers]
    n_answers: tuple[int, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], device: str) -> Batch:
        n = -(-max(one.n_tokens for one in samples) // 16) * 16
        tokens, answered = np.zeros((len(samples), n), np.int64), np.zeros((len(samples), n), np.bool_)
        for row, one in enumerate(samples):
            tokens[row, : one.n_tokens] = np.concatenate((one.prompt, one.answer))
            answered[row, len(one.prompt) - 1 : one.n_tokens - 1] = True
        answers = np.concatenate([one.answer for one in samples]).astype(np.int64)
        arrays = (torch.from_numpy(one).to(device) for one in (tokens, answered, answers))
        return cls(*arrays, tuple(len(one.answer) for one in samples))


def batches(samples: Sequence[Sample], n_tokens: int, seed: int) -> list[list[Sample]]:
    """Of about `n_tokens` tokens of answers, of similar lengths, in a random order."""
    order = list(samples)
    rng = random.Random(seed)
    rng.shuffle(order)
    made: list[list[Sample]] = []
    for start in range(0, len(order), SORTED_TOGETHER):
        n = n_tokens
        for one in sorted(order[start : start + SORTED_TOGETHER], key=lambda one: one.n_tokens):
            if n >= n_tokens:
                made.append([])
                n = 0
            made[-1].append(one)
            n += len(one.answer)
    rng.shuffle(made)
    return made


def hits_of(student: Student, samples: Sequence[Sample], device: str) -> list[Hits]:
    found: list[Hits] = []
    with torch.no_grad():
        student.renew()
        for start in range(0, len(samples), 16):
            batch = Batch.of(samples[start : start + 16], device)
            hits = (student.logits(batch).argmax(-1) == batch.answers).cpu().numpy()
            found += np.split(hits, np.cumsum(batch.n_answers)[:-1])
    return found


@dataclass(frozen=True, slots=True)
class Run:
    kind: str
    rate: float = 2e-3  # of scales and minima, by their block's scale
    move: float = 3e-3  # of codes, a step of them being one
    batch: int = 4000
    epochs: int = 1
    tokens: int = 10**9

    @classmethod
    def of(cls, text: str) -> Run:
        kind, _, rest = text.partition(":")
        given = dict(one.split("=") for one in rest.split(",") if one)
        return cls(kind, **{name: (float if name in ("rate", "move") else int)(value) for name, value in given.items()})

    @property
    def name(self) -> str:
        move = "" if self.kind == "scales" else f"-{self.move:g}"
        return f"{self.kind}-{self.rate:g}{move}-{self.batch}-{self.epochs}"


def teach(
    run: Run,
    header: GgufHeader,
    samples: Sequence[Sample],
    sets: dict[str, list[Sample]],
    arguments: argparse.Namespace,
) -> None:
    device = arguments.device
    student = Student(header, device, run.kind)
    kept, n = [], 0
    for sample in samples:
        if n < run.tokens:
            kept.append(sample)
            n += len(sample.answer)
    steps = [one for epoch in range(run.epochs) for one in batches(kept, run.batch, epoch)]
    optimiser = torch.optim.Adam(student.groups(run), lr=run.rate, betas=(0.9, 0.99), eps=1e-8, fused=device != "cpu")
    everything = [one for trained in student.trained.values() for one in trained.parameters]
    settings = TrainingSettings(learning_rate=run.rate)
    curve, marks, n_tokens, began_s = [], list(MARKS), 0, time.monotonic()

    def note() -> dict[str, Any]:
        found = {name: judge(hits_of(student, group, device)).to_json() for name, group in sets.items()}
        curve.append({"n_tokens": n_tokens, "judged": found, "seconds": time.monotonic() - began_s})
        cells = (f"{name} {one['agreement']:.1%} {one['tokens_per_pass']:.3f}" for name, one in found.items())
        print(f"{run.name} {n_tokens:>9,}  {curve[-1]['seconds']:5.0f} s  " + " | ".join(cells), flush=True)
        return found

    before = note()
    for number, step in enumerate(steps, 1):
        for group in optimiser.param_groups:
            group["lr"] = group["scale"] * rate_at(number, number / len(steps), settings)
        batch = Batch.of(step, device)
        student.renew()
        loss = F.cross_entropy(student.logits(batch), batch.answers)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(everything, settings.clip)
        optimiser.step()
        n_tokens += len(batch.answers)
        if arguments.curve and marks and n_tokens >= marks[0]:
            note()
            while marks and n_tokens >= marks[0]:
                marks.pop(0)
    after = note()
    (arguments.out / f"{run.name}.json").write_text(json.dumps(curve))
    if run.kind == "codes":
        changes = np.concatenate(
            [
                one.codes().detach().sub(one.bases[0]).to(torch.int8).cpu().numpy().reshape(-1)
                for one in student.trained.values()
            ]
        )
        print(f"{np.mean(changes != 0):.2%} of the codes changed: {len(zlib.compress(changes.tobytes(), 6)):,} bytes")
    changes = {name: one.theta.detach().cpu().numpy() for name, one in student.trained.items()}
    record = {
        "target": arguments.names[0],
        "drafter": arguments.names[1],
        "n_tokens": n_tokens,
        "before": before["own"],
        "after": after["own"],
        "date": time.strftime("%Y-%m-%d"),
        "licence": arguments.licence,
    }
    adapter = DraftAdapter(files.sha256_of(arguments.drafter), changes, record)
    (arguments.out / f"{run.name}.adapter").write_bytes(adapter.to_bytes())


def made(arguments: argparse.Namespace, groups: Sequence[Sequence[Lesson]]) -> list[list[Sample]]:
    """Lessons in the drafter's tokens, on all cores."""
    parts = [(number, group[at : at + 64]) for number, group in enumerate(groups) for at in range(0, len(group), 64)]
    with get_context("fork").Pool(arguments.workers, _open, (arguments.target, arguments.drafter)) as pool:
        found: list[list[Sample]] = [[] for _ in groups]
        for number, samples in pool.imap(_samples, parts):
            found[number] += samples
    return found


_opened = ExitStack()  # what a worker holds as long as it lives


def _open(target: Path, drafter: Path) -> None:
    global _maker
    with TemporaryDirectory() as no_lessons:
        _maker = _opened.enter_context(open_pair(target, drafter, Path(no_lessons), print)).maker


def _samples(part: tuple[int, Sequence[Lesson]]) -> tuple[int, list[Sample]]:
    return part[0], [one for lesson in part[1] if (one := _maker.sample(lesson)) is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("drafter", type=Path)
    parser.add_argument("--lessons", type=Path, nargs="+", required=True)
    parser.add_argument("--judge", type=Path, nargs="*", default=[])
    parser.add_argument("--run", type=Run.of, nargs="+", default=[Run("scales")])
    parser.add_argument("--curve", action="store_true", help="judge on the way too")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs=2, required=True, help="of target and drafter, in the catalogue")
    parser.add_argument("--licence", required=True, help="of the adapter: what both models' licences allow")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    lessons = list(chain.from_iterable(map(read, arguments.lessons)))
    random.Random(1).shuffle(lessons)
    held = [one for one in lessons if is_judging(one)][:HELD_OUT]
    learnt = [one for one in lessons if not is_judging(one)]
    samples, *judging = made(arguments, [learnt, held, *(list(read(path)) for path in arguments.judge)])
    sets = dict(zip(["own", *(path.stem for path in arguments.judge)], judging, strict=True))
    n_tokens = sum(len(one.answer) for one in samples)
    print(f"{len(samples)} lessons, {n_tokens:,} tokens in {time.monotonic() - began_s:.0f} s", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    header = read_header(arguments.drafter)
    for run in arguments.run:
        teach(run, header, samples, sets, arguments)


if __name__ == "__main__":
    main()
