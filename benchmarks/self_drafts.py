"""Whether a target drafts for itself with layers left out, before and after training.

    OPENBLAS_NUM_THREADS=1 python benchmarks/self_drafts.py TARGET.gguf --folder FOLDER [--tokens 25000]
        [--kept 75,50,25] [--rates 3e-3,1e-3] [--learn N]

The target answers questions of its own; an eighth of them judges, the others (with --learn, the first N tokens of
their answers) are learnt by the scales of each copy, once at each rate. FOLDER keeps the answers, the copies, and a
line of JSON for every judgement (`judged.jsonl`): a run that was stopped goes on from there. Copies are the target's
file with tensors left out: the first and the last two layers stay always, the others are dropped evenly from the
middle.

Costs are bytes of weights that a pass reads: layers, norms and head. The speed against plain decoding that is expected
of drafts of four is tokens a pass / (1 + 4 x cost). It takes the target's pass over five tokens for one of its usual
ones, so it is the most that can come of it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

from distillation import limited, read_answers

from edgellm.export.convert import gguf_writer as gguf
from edgellm.export.convert.gguf_copy import copied, raw_entries
from edgellm.memory.gguf import GgufHeader, TensorInfo, read_header
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.distillation.curriculum import is_judging
from edgellm.runtime.distillation.judging import N_DRAFTED, hits_of, judge
from edgellm.runtime.distillation.lesson import Lesson, Sample
from edgellm.runtime.distillation.network import Network
from edgellm.runtime.distillation.own_questions import OwnQuestions
from edgellm.runtime.distillation.samples import SampleMaker
from edgellm.runtime.distillation.talk_job import ANSWER_TOKENS, N_CTX
from edgellm.runtime.distillation.talking import Talker
from edgellm.runtime.distillation.training import Step, TrainingSettings, train
from edgellm.runtime.text.template import usable

N_ENDS = 2  # layers at either end that are never dropped
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # whose layers are all alike: gemma3's see a window by their number
HEAD = "| layers | cost | learnt | rate | agreement | accepted of 4 | tokens a pass | needed | x plain | CPU-s |"

Sets = tuple[list[Sample], list[Sample]]  # to learn, and that judge
Row = dict[str, Any]


def layers_kept(n_layers: int, n_kept: int) -> list[int]:
    """The layers of the target that a copy with `n_kept` of them has, ascending."""
    n_ends = min(N_ENDS, n_kept // 2)
    n_middle, middle = n_kept - 2 * n_ends, range(n_ends, n_layers - n_ends)
    spread = [middle[(2 * i + 1) * len(middle) // (2 * n_middle)] for i in range(n_middle)]
    return [*range(n_ends), *spread, *range(n_layers - n_ends, n_layers)]


def write_copy(source: Path, target: Path, kept: Sequence[int]) -> None:
    """Write `source` with the layers `kept` alone, numbered anew in that order; whole or not at all."""
    header = read_header(source)
    if header.architecture not in ARCHITECTURES:
        raise SystemExit(f"{source.name} is {header.architecture}: layers are left out of {', '.join(ARCHITECTURES)}")
    entries = dict(raw_entries(source)) | {f"{header.architecture}.block_count": gguf.u32(len(kept))}
    new_numbers = {old: new for new, old in enumerate(kept)}
    gguf.write_gguf(target, entries, list(_planned(header, new_numbers)))


def _planned(header: GgufHeader, new_numbers: dict[int, int]) -> Iterator[gguf.PlannedTensor]:
    for tensor in header.tensors:
        layer = _layer_of(tensor)
        if layer is None:
            yield copied(header, tensor)
        elif layer in new_numbers:
            yield copied(header, tensor, tensor.name.replace(f"blk.{layer}.", f"blk.{new_numbers[layer]}.", 1))


def _layer_of(tensor: TensorInfo) -> int | None:
    return int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else None


def pass_bytes(header: GgufHeader) -> int:
    """Bytes of weights that a pass over one token reads."""
    has_head = any(tensor.name == "output.weight" for tensor in header.tensors)
    return sum(tensor.n_bytes for tensor in header.tensors if not (has_head and tensor.name == "token_embd.weight"))


def answers(target: Path, path: Path, n_tokens: int, n_threads: int) -> list[Lesson]:
    """The target's answers to questions of its own, `n_tokens` in all; those in the file, and what they lack."""
    known = read_answers(path) if path.exists() else []
    n_said, enough = sum(len(lesson.tokens) for lesson in known), Event()
    if n_said >= n_tokens:
        return known
    model = LlamaModel(target)
    template, _ = usable(model.chat_template, model.vocabulary)
    talker = Talker(model, template, n_ctx=N_CTX, n_threads=n_threads)
    asker = OwnQuestions(seed=len(known), known=known)
    with path.open("a", encoding="utf-8") as out:
        for lesson in talker.answer(asker, max_tokens=ANSWER_TOKENS, cancel=enough):
            out.write(json.dumps(asdict(replace(lesson, likely=()))) + "\n")
            out.flush()
            n_said += len(lesson.tokens)
            if n_said >= n_tokens:
                enough.set()
    talker.close()
    model.close()
    return read_answers(path)


def samples_of(target: Path, lessons: Sequence[Lesson]) -> Sets:
    """What is learnt, and what judges: the target's own tokens behind its own template."""
    model = LlamaModel(target, ModelOptions(vocabulary_only=True))
    template, _ = usable(model.chat_template, model.vocabulary)
    maker = SampleMaker(model.vocabulary, model.vocabulary, template, same=True)
    made = [(is_judging(lesson), sample) for lesson in lessons if (sample := maker.sample(lesson)) is not None]
    model.close()
    return [sample for judges, sample in made if not judges], [sample for judges, sample in made if judges]


def tried(copy: Path, kept: list[int], cost: float, rate: float | None, sets: Sets) -> Row:
    """A copy judged, after training at a rate if one is given."""
    learnt, judging = sets
    began_s, steps = time.process_time(), list[tuple[int, float, float]]()

    def note(step: Step) -> bool:
        steps.append((step.n_tokens, round(step.loss, 4), round(step.agreement, 4)))
        return True

    network = Network.open(copy)
    if rate is not None:
        train(network, learnt, TrainingSettings(learning_rate=rate), on_step=note)
    cpu_s = time.process_time() - began_s
    judged = judge(hits_of(network, judging))
    speed = judged.tokens_per_pass / (1 + N_DRAFTED * cost)
    row = {"kept": kept, "cost": round(cost, 4), "rate": rate, "n_learnt": n_learnt(rate, learnt)}
    row |= judged.to_json() | {"speed": round(speed, 4), "cpu_s": round(cpu_s, 1)}
    return row | {"steps": steps}  # tokens so far; loss and agreement of each before it was learnt


def n_learnt(rate: float | None, samples: Sequence[Sample]) -> int:
    return 0 if rate is None else sum(len(sample.answer) for sample in samples)


def rows(target: Path, folder: Path, trials: Iterable[tuple[float, float | None]], sets: Sets) -> Iterator[Row]:
    """A judgement for each share of the layers and rate; those that the folder holds already are not made again."""
    header, path = read_header(target), folder / "judged.jsonl"
    n_layers = int(header.hparam("block_count"))
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with path.open("a", encoding="utf-8") as out:
        for share, rate in trials:
            kept = layers_kept(n_layers, math.floor(share * n_layers + 0.5))
            key = kept, rate, n_learnt(rate, sets[0])
            row = next((row for row in known if (row["kept"], row["rate"], row["n_learnt"]) == key), None)
            if row is None:
                copy = folder / f"{target.stem}-{len(kept)}-layers.gguf"
                write_copy(target, copy, kept)
                row = tried(copy, kept, pass_bytes(read_header(copy)) / pass_bytes(header), rate, sets)
                out.write(json.dumps(row) + "\n")
                out.flush()
            yield row


def show(row: Row) -> None:
    cells = (
        str(len(row["kept"])),
        f"{row['cost']:.2f}",
        f"{row['n_learnt']:,}",
        "" if row["rate"] is None else f"{row['rate']:g}",
        f"{row['agreement']:.1%}",
        f"{row['accepted_of_4']:.2f}",
        f"{row['tokens_per_pass']:.2f}",
        f"{1 + N_DRAFTED * row['cost']:.2f}",
        f"{row['speed']:.2f}",
        f"{row['cpu_s']:.0f}",
    )
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=25_000, help="of answers, an eighth of which judges")
    parser.add_argument("--kept", default="75,50,25", help="percent of the layers")
    parser.add_argument("--rates", default="3e-3,1e-3")
    parser.add_argument("--learn", type=int, default=10**9, help="tokens of answers at most")
    parser.add_argument("--threads", type=int, default=1, help="of the target, while it answers")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    began_s = time.process_time()
    lessons = answers(arguments.target, arguments.folder / "answers.jsonl", arguments.tokens, arguments.threads)
    learnt, judging = samples_of(arguments.target, lessons)
    sets = (limited(learnt, arguments.learn), judging)
    n_said, n_judging = (sum(len(sample.answer) for sample in samples) for samples in (learnt, judging))
    print(f"{len(lessons)} answers, {n_said:,} tokens to learn and {n_judging:,} that judge; ", end="")
    print(f"{time.process_time() - began_s:.0f} CPU-seconds\n\n{HEAD}\n{'|---' * HEAD.count(' |')}|", flush=True)
    shares = [int(percent) / 100 for percent in arguments.kept.split(",")]
    rates = [float(rate) for rate in arguments.rates.split(",")]
    trials = [*product((1.0, *shares), (None,)), *((share, rate) for rate, share in product(rates, shares))]
    for row in rows(arguments.target, arguments.folder, trials, sets):
        show(row)


if __name__ == "__main__":
    main()
