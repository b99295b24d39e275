"""Do runs stay inside their plan? Random plans under a hard limit, and memory over a long conversation.

    python benchmarks/obeyed.py limits --model FILE [--model FILE] [--plans 20]
    python benchmarks/obeyed.py turns --target FILE [--drafter FILE] [--turns 200]

`limits`: each plan runs a conversation of ten turns in a process whose control group may hold the plan plus 3 % (memory
cgroup, version 1 or 2; needs root), then is asked to run with 15 % less, which must be refused before loading with exit
code 3. `turns`: one process, context of 1,024 tokens, `--on-full shift`; resident memory after every turn. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgellm.memory.context import ContextSettings, KvType
from edgellm.memory.cpu import usable_cores
from edgellm.memory.gguf import read_header
from edgellm.memory.kv import fits_cache
from edgellm.memory.plan import Limit, MemoryPlan, PairSettings, plan
from edgellm.memory.shape import from_header
from edgellm.memory.stored import plan_from_json
from edgellm.memory.units import MIB

SUBJECTS = (
    "rivers",
    "bread",
    "hash tables",
    "the moon",
    "bicycles",
    "prime numbers",
    "volcanoes",
    "chess",
    "salt",
    "bees",
)
QUESTIONS = ("Tell me something about {}.", "Write a Python function about {}.", "Say more.", "And why is that?")
MARGIN = 1.03


def random_plans(models: list[Path], n_plans: int) -> Iterator[tuple[Path, Path | None, MemoryPlan]]:
    rng = random.Random(7)
    shapes = {path: from_header(read_header(path)) for path in models}
    while n_plans:
        target, drafter = rng.choice(models), rng.choice([None, *models])
        if drafter and shapes[drafter].weight_bytes * 2 > shapes[target].weight_bytes:
            continue
        kinds: list[KvType] = ["f16", "q8_0", "q4_0"]
        kv = rng.choice([kind for kind in kinds if all(fits_cache(shapes[m], kind) for m in (target, drafter) if m)])
        n_draft = rng.randint(1, 8)
        main = ContextSettings(
            rng.choice((512, 1024, 2048, 4096, 8192)), rng.choice((32, 64, 128, 256)), n_draft + 1, kv,
            n_threads=usable_cores(),
        )  # fmt: skip
        own = replace(main, n_ctx=min(main.n_ctx, rng.choice((512, 2048))), n_ubatch=rng.choice((32, 64)), n_outputs=1)
        settings = PairSettings(main, n_draft, own if drafter else None, loading="packed")
        limit = Limit("a hard limit", 2**40)
        yield target, drafter, plan(shapes[target], shapes[drafter] if drafter else None, settings, limit)
        n_plans -= 1


@contextmanager
def group(limit_bytes: int) -> Iterator[Path]:
    """A memory control group of its own."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    first = "memory" in own
    root = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup") / own["memory" if first else ""].lstrip("/")
    folder = root / f"edgellm-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit_bytes))
        yield folder
    finally:
        folder.rmdir()


def limits(arguments: argparse.Namespace) -> None:
    n_good = 0
    for number, (target, drafter, it) in enumerate(random_plans(arguments.model, arguments.plans), 1):
        with tempfile.TemporaryDirectory() as folder, group(int(it.process_bytes * MARGIN)) as box:
            file = Path(folder) / "plan.json"
            file.write_text(json.dumps(it.to_json()))
            request = json.dumps([str(target), str(drafter) if drafter else None, it.to_json()])
            run = subprocess.run(
                [sys.executable, __file__, "conversation", request],
                preexec_fn=lambda: (box / "cgroup.procs").write_text(str(os.getpid())),
                capture_output=True,
                text=True,
            )
            names = [str(target), "--draft", str(drafter) if drafter else "none", "--plan", str(file)]
            command = [sys.executable, "-m", "edgellm.cli", "chat", *names, "-p", "Hello"]
            less = subprocess.run(
                [*command, "--budget", str(int(it.process_bytes * 0.85))], capture_output=True, text=True
            )
        good = run.returncode == 0 and less.returncode == 3 and not less.stdout and "error:" in less.stderr
        n_good += good
        main, own = it.settings.target, it.settings.drafter
        peak = json.loads(run.stdout)["peak_bytes"] if run.returncode == 0 else 0
        print(
            f"| {number} | {target.stem} | {drafter.stem if drafter else '-'} | {main.n_ctx} | {main.kv} "
            f"| {main.n_ubatch} | {it.n_draft} | {own.n_ctx if own else '-'} "
            f"| {it.process_bytes / MIB:.1f} | {peak / MIB:.1f} "
            f"| {'ok' if good else f'exit {run.returncode} {less.returncode} {run.stderr[-200:]}'} |",
            flush=True,
        )
    print(f"{n_good} of {arguments.plans} plans ran within 3 % of their size and were refused at 85 % of it")


def conversation(request: str) -> None:
    from edgellm.runtime import ChatSession, load
    from edgellm.runtime.bringup.calibrate import peak_bytes

    target, drafter, data = json.loads(request)
    with load(target, drafter, plan=plan_from_json(data)) as engine:
        session = ChatSession(engine, on_full="shift")
        for turn in range(10):
            question = QUESTIONS[turn % len(QUESTIONS)].format(SUBJECTS[turn])
            for _ in session.reply(question, max_tokens=48):
                pass
        assert not any("instead" in warning for warning in engine.warnings), engine.warnings
        print(json.dumps({"peak_bytes": peak_bytes()}))


def turns(arguments: argparse.Namespace) -> None:
    from edgellm.runtime import ChatSession, EngineOptions, load

    def resident() -> int:
        text = Path("/proc/self/status").read_text().split("VmRSS:")[1]
        return int(text.split()[0]) * 1024

    with load(arguments.target, arguments.drafter, EngineOptions(n_ctx=1024)) as engine:
        session, sizes, answers = ChatSession(engine, on_full="shift"), list[int](), list[str]()
        for turn in range(arguments.turns):
            question = QUESTIONS[turn % len(QUESTIONS)].format(SUBJECTS[turn // 4 % len(SUBJECTS)])
            answers.append("".join(session.reply(question, max_tokens=arguments.tokens)))
            sizes.append(resident())
            if turn % 20 == 19:
                print(turn + 1, f"{sizes[-1] / MIB:.2f} MiB, {session.n_forgotten} messages forgotten", flush=True)
        settled = sizes[10:]
        print(
            json.dumps(
                {
                    "turns": len(sizes), "first_bytes": sizes[0], "after_10_bytes": sizes[10], "last_bytes": sizes[-1],
                    "spread": round(max(settled) / min(settled) - 1, 5), "n_forgotten": session.n_forgotten,
                }
            )
        )  # fmt: skip
        for turn in (0, len(answers) // 2, len(answers) - 1):
            print(f"--- answer {turn + 1}: {answers[turn][:300]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("limits")
    command.add_argument("--model", type=Path, action="append", required=True)
    command.add_argument("--plans", type=int, default=20)
    command = commands.add_parser("turns")
    command.add_argument("--target", type=Path, required=True)
    command.add_argument("--drafter", type=Path)
    command.add_argument("--turns", type=int, default=200)
    command.add_argument("--tokens", type=int, default=32)
    commands.add_parser("conversation").add_argument("request")
    arguments = parser.parse_args()
    if arguments.command == "conversation":
        return conversation(arguments.request)
    return limits(arguments) if arguments.command == "limits" else turns(arguments)


if __name__ == "__main__":
    main()
