"""How much a drafter learns of its target: curves over the tokens it learnt from, and what is trained and how.

    python benchmarks/distillation.py answers TARGET.gguf --prompts FILE --out answers.jsonl [--limit 24]
    python benchmarks/distillation.py curve TARGET.gguf DRAFTER.gguf --learned FOLDER --judge answers.jsonl
        [--at 5000,20000,80000] [--kinds maths,python] [--adapter FILE] --out curve.jsonl
    python benchmarks/distillation.py variants TARGET.gguf DRAFTER.gguf --learned FOLDER --judge answers.jsonl
        [--tokens 20000] [--variants scales,hybrid,upper] --out variants.jsonl

`answers` are the target's own to prompts that nothing is trained on. `curve` trains once through the lessons of the
folder (what `edgellm adapt` keeps) and judges on the way: agreement, tokens accepted of four drafted and tokens a pass
with drafts of four, on each file of answers and on the lessons held out. With --kinds only lessons of these kinds are
learnt, which shows what is forgotten of the others. `variants` train the same lessons from the beginning each:

    scales    what `edgellm adapt` does: scales and minima of the file, cross-entropy on the target's text
    soft      the same, on the target's probabilities where both vocabularies have a border
    hybrid    OmniDraft's loss (arXiv:2507.02659): reverse KL there, 0.2 times cross-entropy elsewhere
    upper     scales of the upper half of the layers
    head      also the scales of the tied embedding, by what it says as the head
    whole     the same as scales, and what a question's tokens hold learns too
    lora      adapters of rank 16 on all matrices, not merged; then merged and written as Q5_1, Q8_0 and Q4_1 would
    full      all weights of the matrices, likewise

Run it with OPENBLAS_NUM_THREADS=1: the trainer has threads of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.memory import files
from edgellm.memory.draft_adapter import DraftAdapter, quantised_matrix
from edgellm.memory.gguf import GgufHeader
from edgellm.memory.quantised import Floats
from edgellm.runtime.backends.llama_cpp import LlamaModel
from edgellm.runtime.distillation.curriculum import is_judging
from edgellm.runtime.distillation.judging import hits_of, judge
from edgellm.runtime.distillation.lesson import Lesson, Sample
from edgellm.runtime.distillation.network import Network
from edgellm.runtime.distillation.pair import open_pair
from edgellm.runtime.distillation.rows import Gradients, Rows
from edgellm.runtime.distillation.talking import Talker, read_prompts
from edgellm.runtime.distillation.training import Adam, Step, TrainingSettings, batches, train
from edgellm.runtime.text.template import usable

HELD_OUT = 32  # lessons of the folder that judge
FLOOR = 1e-4  # probability of a token that the target did not hold likely, where a logarithm of it is asked
RANK, STRENGTH = 16, 2.0  # of LoRA


def answers(arguments: argparse.Namespace) -> None:
    model = LlamaModel(arguments.target)
    template, _ = usable(model.chat_template, model.vocabulary)
    questions = read_prompts(arguments.prompts)[: arguments.limit]
    talker = Talker(model, template, n_ctx=arguments.ctx, n_threads=arguments.threads)
    with arguments.out.open("w") as out:
        for lesson in talker.answer(questions, max_tokens=arguments.tokens):
            row = {"messages": lesson.messages, "tokens": lesson.tokens, "ended": lesson.ended, "kind": lesson.kind}
            out.write(json.dumps(row) + "\n")
    talker.close()
    model.close()


def read_answers(path: Path) -> list[Lesson]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        Lesson(
            tuple((role, text) for role, text in row["messages"]), tuple(row["tokens"]), row["ended"], (), row["kind"]
        )
        for row in rows
    ]


Sets = dict[str, list[Sample]]


def gather(arguments: argparse.Namespace) -> tuple[list[Sample], Sets]:
    """Samples to learn, and sets that judge, by name."""
    kinds = set(arguments.kinds.split(",")) if arguments.kinds else None
    with open_pair(arguments.target, arguments.drafter, arguments.learned, print) as pair:
        lessons = pair.lessons.all()
        random.Random(1).shuffle(lessons)
        learnt = [one for one in lessons if not is_judging(one) and (kinds is None or one.kind in kinds)]
        held = [one for one in lessons if is_judging(one)][:HELD_OUT]
        named = {"own": held} | {path.stem: read_answers(path) for path in arguments.judge}
        made = {name: [pair.maker.sample(one) for one in group] for name, group in named.items()}
        samples = [sample for one in learnt if (sample := pair.maker.sample(one)) is not None]
    return samples, {name: [one for one in group if one is not None] for name, group in made.items()}


def judged(network: Any, sets: Sets, n_threads: int) -> dict[str, Any]:
    return {name: judge(hits_of(network, group, n_threads)).to_json() for name, group in sets.items()}


def show(label: str, found: Mapping[str, Any]) -> None:
    cells = (
        f"{name} {one['agreement']:.1%}, {one['accepted_of_4']:.2f} of 4, {one['tokens_per_pass']:.2f} a pass"
        for name, one in found.items()
    )
    print(f"{label:>14}  " + " | ".join(cells), flush=True)


def curve(arguments: argparse.Namespace) -> None:
    samples, sets = gather(arguments)
    network = Network.open(arguments.drafter)
    marks = sorted(map(int, arguments.at.split(",")))
    began_s, cpu_s = time.perf_counter(), time.process_time()
    n_judging_cpu_s, first = 0.0, dict[str, Any]()
    with arguments.out.open("w") as out:

        def note(n_tokens: int) -> None:
            nonlocal n_judging_cpu_s
            before = time.process_time()
            found = judged(network, sets, arguments.threads)
            n_judging_cpu_s += time.process_time() - before
            show(f"{n_tokens:,} tokens", found)
            cost = {
                "wall_s": time.perf_counter() - began_s,
                "training_cpu_s": time.process_time() - cpu_s - n_judging_cpu_s,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
            out.write(json.dumps({"n_tokens": n_tokens, "judged": found, **cost}) + "\n")
            out.flush()
            if arguments.adapter:
                files.write(
                    arguments.adapter, adapter_of(network, arguments, n_tokens, first or found, found).to_bytes()
                )
            first.update(first or found)

        def on_step(step: Step) -> bool:
            if marks and step.n_tokens >= marks[0]:
                marks.pop(0)
                note(step.n_tokens)
            return bool(marks) or step.n_done < step.n_steps

        note(0)
        settings = TrainingSettings(n_threads=arguments.threads, learning_rate=arguments.rate)
        train(network, limited(samples, marks[-1] + settings.batch_tokens), settings, on_step=on_step)
        if marks:
            note(sum(len(sample.answer) for sample in samples))


def adapter_of(
    network: Network, arguments: argparse.Namespace, n_tokens: int, before: Mapping[str, Any], after: Mapping[str, Any]
) -> DraftAdapter:
    """What `edgellm adapt` would write."""
    record = {
        "target": arguments.target.stem,
        "drafter": arguments.drafter.stem,
        "n_tokens": n_tokens,
        "before": before["own"],
        "after": after["own"],
        "date": time.strftime("%Y-%m-%d"),
    }
    return DraftAdapter(files.sha256_of(arguments.drafter), network.changes(), record)


def limited(samples: Sequence[Sample], n_tokens: int) -> list[Sample]:
    kept, n = [], 0
    for sample in samples:
        if n >= n_tokens:
            break
        kept.append(sample)
        n += len(sample.answer)
    return kept


class Soft(Network):
    """Learns the target's probabilities where they are known."""

    reverse = False

    def _loss(self, last: Floats, answers: NDArray[np.int32], found: Gradients) -> Floats:
        normed, slope = self._normed(last, "output_norm.weight"), np.empty_like(last)
        for start in range(0, len(last), 256):
            part, wanted = slice(start, start + 256), answers[start : start + 256]
            logits = normed[part] @ self._head.T
            found.n_right += int((logits.argmax(-1) == wanted).sum())
            logits -= logits.max(-1, keepdims=True)
            own = np.exp(logits)
            own /= own.sum(-1, keepdims=True)
            found.loss -= float(np.log(own[np.arange(len(wanted)), wanted] + 1e-20).sum())
            for row, (said, likely) in enumerate(zip(wanted, self.likely[start : start + 256], strict=True)):
                self._slope_of(own[row], int(said), likely)
            slope[part] = own @ self._head
        found.n_tokens += len(answers)
        return self._normed_back(slope, last, "output_norm.weight")

    def _slope_of(self, own: Floats, said: int, likely: Any) -> None:
        """Turns a row of probabilities into the slope of its loss, in place."""
        if likely is None:
            own[said] -= 1
            if self.reverse:
                own *= np.float32(0.2)
        elif self.reverse:
            ratio = np.log(own + np.float32(1e-12)) - np.float32(np.log(FLOOR))
            for token, share in likely:
                ratio[token] = np.log(own[token] + 1e-12) - np.log(max(share, FLOOR))
            own *= ratio - np.float32(own @ ratio)
        else:
            for token, share in likely:
                own[token] -= share

    def gradients(self, samples: Sequence[Sample]) -> Gradients:
        network = object.__new__(type(self))  # threads share the weights, not what is likely
        network.__dict__.update(self.__dict__)
        network.likely = [
            likely for one in samples for likely in (one.soft or (None,) * len(one.answer))[: len(one.answer)]
        ]
        return Network.gradients(network, samples)

    likely: list[Any]


class Hybrid(Soft):
    reverse = True


class Upper(Network):
    """Learns in the upper half of its layers."""

    def gradients(self, samples: Sequence[Sample]) -> Gradients:
        rows, found, first = Rows.of(samples), Gradients(), self.shape.n_layers // 2
        rotations, kept = self._rotations(rows), list[Any]()
        slope = self._loss(self._forward(rows, rotations, kept), rows.answers, found)
        for layer in reversed(range(first, self.shape.n_layers)):
            rotation = rotations[layer].at(rows.answered)
            slope = self._layer_back(layer, slope, kept.pop(), self._attention(rows, layer), rotation, found)
        return found

    def changes(self) -> dict[str, Floats]:
        return {n: t for n, t in super().changes().items() if int(n.split(".")[1]) >= self.shape.n_layers // 2}


class WithHead(Network):
    """Learns in the tied embedding too."""

    def __init__(self, header: GgufHeader) -> None:
        super().__init__(header)
        tensor = next(tensor for tensor in header.tensors if tensor.name == "token_embd.weight")
        self.matrices[tensor.name] = quantised_matrix(header, tensor)
        self._weights["token_embd"] = self._embedding

    def _loss(self, last: Floats, answers: NDArray[np.int32], found: Gradients) -> Floats:
        back = super()._loss(last, answers, found)
        normed = self._normed(last, "output_norm.weight")
        logits = normed @ self._head.T
        logits -= logits.max(-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(-1, keepdims=True)
        logits[np.arange(len(answers)), answers] -= 1
        name = "token_embd.weight"
        found.thetas[name] = self.matrices[name].gradient((logits.T @ normed).astype(np.float32), self._embedding)
        return back


class Whole(Network):
    """Lets slopes reach the questions: their tokens learn to hold what the answers want, but are not predicted."""

    n_asked: list[int]  # rows of each text before its answer
    lengths: list[int]  # rows of each

    def gradients(self, samples: Sequence[Sample]) -> Gradients:
        network = object.__new__(type(self))  # threads share the weights, not which rows are questions
        network.__dict__.update(self.__dict__)
        network.n_asked = [len(one.prompt) - 1 for one in samples]
        texts = [np.concatenate((one.prompt, one.answer)) for one in samples]
        network.lengths = [len(text) - 1 for text in texts]
        return Network.gradients(network, [Sample(text[:1], text[1:]) for text in texts])

    def _loss(self, last: Floats, answers: NDArray[np.int32], found: Gradients) -> Floats:
        said = np.ones(len(last), np.bool_)
        start = 0
        for n, rows in zip(self.n_asked, self.lengths, strict=True):
            said[start : start + n] = False
            start += rows
        slope = np.zeros_like(last)
        slope[said] = super()._loss(last[said], answers[said], found)
        return slope


class Dense(Network):
    """Hands out the slopes of whole matrices."""

    def _product_back(self, slope: Floats, x: Floats, name: str, found: Gradients) -> Floats:
        if f"{name}.weight" in self.matrices:
            found.thetas[name] = self.reduced(name, slope.T @ x)
        return slope @ self._weights[name]

    def reduced(self, name: str, slope: Floats) -> Floats:
        return slope

    def begin(self) -> None:
        self.start = {
            name.removesuffix(".weight"): self._weights[name.removesuffix(".weight")].copy() for name in self.matrices
        }

    def move(self, moved: Mapping[str, Floats]) -> None:
        for name, change in moved.items():
            self._weights[name] += change

    def written_as(self, grid: Callable[[Floats], Floats]) -> Iterator[None]:
        """While it is iterated, the matrices are what a file of that type would hold."""
        whole = {name: self._weights[name] for name in self.start}
        for name, weight in whole.items():
            self._weights[name] = grid(weight)
        yield
        self._weights.update(whole)


class LowRank(Dense):
    def begin(self) -> None:
        super().begin()
        rng = np.random.default_rng(1)
        self.a = {
            n: (rng.standard_normal((RANK, w.shape[1])) / w.shape[1] ** 0.5).astype(np.float32)
            for n, w in self.start.items()
        }
        self.b = {n: np.zeros((w.shape[0], RANK), np.float32) for n, w in self.start.items()}

    def reduced(self, name: str, slope: Floats) -> Floats:
        """The slopes of both factors in one array: [RANK, n_in + n_out]."""
        return np.concatenate((self.b[name].T @ slope, self.a[name] @ slope.T), axis=1) * np.float32(STRENGTH)

    def move(self, moved: Mapping[str, Floats]) -> None:
        for name, change in moved.items():
            n_in = self.a[name].shape[1]
            self.a[name] += change[:, :n_in]
            self.b[name] += change[:, n_in:].T
            self._weights[name] = self.start[name] + np.float32(STRENGTH) * self.b[name] @ self.a[name]


def q8_0(weight: Floats) -> Floats:
    blocks = weight.reshape(-1, 32)
    scale = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    codes = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0))
    written: Floats = (codes * scale).astype(np.float32, copy=False)
    return written.reshape(weight.shape)


def with_minimum(n_levels: int) -> Callable[[Floats], Floats]:
    """Q4_1 and Q5_1 as ggml rounds."""

    def grid(weight: Floats) -> Floats:
        blocks = weight.reshape(-1, 32)
        least = blocks.min(-1, keepdims=True).astype(np.float16).astype(np.float32)
        scale = ((blocks.max(-1, keepdims=True) - least) / (n_levels - 1)).astype(np.float16).astype(np.float32)
        codes = np.rint(np.divide(blocks - least, scale, out=np.zeros_like(blocks), where=scale != 0))
        written: Floats = (np.clip(codes, 0, n_levels - 1) * scale + least).astype(np.float32, copy=False)
        return written.reshape(weight.shape)

    return grid


GRIDS = {"Q8_0": q8_0, "Q5_1": with_minimum(32), "Q4_1": with_minimum(16)}


def train_dense(network: Dense, samples: Sequence[Sample], settings: TrainingSettings) -> None:
    """As `train`, over whole matrices or their factors."""
    adam, steps = Adam(settings), batches(samples, settings)
    network.begin()
    for n, step in enumerate(steps, 1):
        found = Gradients()
        for part in step:
            found.add(network.gradients(part))
        rate = settings.learning_rate * min(1.0, n / settings.n_warm_up)
        rate *= max(settings.last_rate, 0.5 * (1 + np.cos(np.pi * n / len(steps))))
        slopes = {name: slope / np.float32(found.n_tokens) for name, slope in found.thetas.items()}
        network.move(adam.changes(slopes, rate))


VARIANTS: dict[str, tuple[type[Network], float]] = {  # with the rate that suits it
    "scales": (Network, 1e-3), "soft": (Soft, 1e-3), "hybrid": (Hybrid, 1e-3), "upper": (Upper, 1e-3),
    "head": (WithHead, 1e-3), "whole": (Whole, 1e-3), "lora": (LowRank, 1e-3), "full": (Dense, 2e-5),
}  # fmt: skip


def variants(arguments: argparse.Namespace) -> None:
    samples, sets = gather(arguments)
    samples = limited(samples, arguments.tokens)
    settings = TrainingSettings(n_threads=arguments.threads, batch_tokens=arguments.batch)
    with arguments.out.open("a") as out:

        def note(label: str, network: Network, **cost: float) -> None:
            found = judged(network, sets, arguments.threads)
            show(label, found)
            out.write(json.dumps({"variant": label, "judged": found, **cost}) + "\n")
            out.flush()

        note("untrained", Network.open(arguments.drafter))
        for name in arguments.variants.split(","):
            kind, rate = VARIANTS[name]
            network = kind.open(arguments.drafter)
            began_s = time.process_time()
            one = replace(settings, learning_rate=rate * arguments.faster)
            if isinstance(network, Dense):
                train_dense(network, samples, one)
            else:
                train(network, samples, one)
            note(name, network, cpu_s=time.process_time() - began_s)
            if isinstance(network, Dense):
                for grid_name, grid in GRIDS.items():
                    for _ in network.written_as(grid):
                        note(f"{name}, {grid_name}", network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    asked = commands.add_parser("answers")
    asked.set_defaults(run=answers)
    asked.add_argument("target", type=Path)
    asked.add_argument("--prompts", type=Path, required=True)
    asked.add_argument("--limit", type=int, default=24)
    asked.add_argument("--tokens", type=int, default=256, help="of an answer, at most")
    asked.add_argument("--ctx", type=int, default=1024, help="of a question with its answer")
    for name, run in (("curve", curve), ("variants", variants)):
        taught = commands.add_parser(name)
        taught.set_defaults(run=run)
        taught.add_argument("target", type=Path)
        taught.add_argument("drafter", type=Path)
        taught.add_argument("--learned", type=Path, required=True, help="the folder of lessons")
        taught.add_argument("--judge", type=Path, action="append", default=[], help="what `answers` wrote")
        taught.add_argument("--kinds", help="lessons of these kinds alone")
        if name == "curve":
            taught.add_argument("--at", default="5000,10000,20000,40000,80000,160000,320000", help="tokens of answers")
            taught.add_argument("--rate", type=float, default=1e-3)
            taught.add_argument("--adapter", type=Path, help="file for what was learnt so far, at each of them")
        else:
            taught.add_argument("--tokens", type=int, default=20_000)
            taught.add_argument("--variants", default=",".join(VARIANTS))
            taught.add_argument("--faster", type=float, default=1.0, help="times each one's learning rate")
            taught.add_argument("--batch", type=int, default=1000, help="answer tokens of a step")
    for command in commands.choices.values():
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
