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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training_variants import GRIDS, VARIANTS, Dense, train_dense

from edgellm.memory import files
from edgellm.memory.draft_adapter import DraftAdapter
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.distillation.curriculum import is_judging
from edgellm.runtime.distillation.judging import hits_of, judge
from edgellm.runtime.distillation.lesson import Lesson, Sample
from edgellm.runtime.distillation.network import Network
from edgellm.runtime.distillation.pair import open_pair
from edgellm.runtime.distillation.talking import Talker, read_prompts
from edgellm.runtime.distillation.training import Step, TrainingSettings, train
from edgellm.runtime.text.template import usable

HELD_OUT = 32  # lessons of the folder that judge


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
