"""Each architecture that tiny models are written of: drafts that err, rollbacks, memory, turns. Prints Markdown.

    OMP_WAIT_POLICY=passive python benchmarks/families.py [--patterns 1000] [--prompts 20] [ARCHITECTURE ...]

Random weights of a few hundred KiB in Q8_0. Counts and bits alone are of interest; nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import families
from tiny_gguf import ARCHITECTURES, CHATML

from edgellm.memory.gguf import read_header
from edgellm.memory.shape import from_header
from edgellm.runtime import EngineOptions, load

TURNS = ("qwen35", "granitehybrid", "mamba2", "gemma3", "qwen3")
TEMPLATES = {"keeps what was said": (CHATML, None), "opens a thought, drops it": (families.THINKS, 20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--patterns", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--turns", type=int, default=10)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.prompts or asked.patterns:
            drafts(folder, asked.architectures, asked.prompts, asked.patterns)
        memory(folder, asked.architectures)
        turns(folder, [one for one in TURNS if one in asked.architectures], asked.turns)


def drafts(folder: Path, architectures: list[str], n_prompts: int, n_patterns: int) -> None:
    print(
        "| architecture | rollback | answers equal | drafted | accepted | patterns | taken back | rows | other bits |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for architecture in architectures:
        path = families.write(folder, architecture)
        shape = from_header(read_header(path))
        how = "snapshots" if shape.keeps_snapshots else "copies" if shape.is_recurrent else "cut"
        if any(group.window for group in shape.attention):
            how += ", window"
        drafted = families.compare_drafts(path, n_prompts)
        back = families.compare_rollbacks(path, n_patterns)
        print(
            f"| {architecture} | {how} | {drafted.n_equal} of {drafted.n_prompts} | {drafted.n_drafted:,} "
            f"| {drafted.n_accepted:,} | {back.n_patterns:,} | {back.n_rejected:,} | {back.n_rows:,} "
            f"| {back.n_other_bits} |",
            flush=True,
        )


def memory(folder: Path, architectures: list[str]) -> None:
    print("\n| architecture | line | planned, B | held, B |\n|---|---|---|---|")
    for architecture in architectures:
        for line in families.compare_memory(families.write(folder, architecture)):
            print(f"| {architecture} | {line.name} | {line.planned:,} | {line.held:,} |", flush=True)


def turns(folder: Path, architectures: list[str], n_turns: int) -> None:
    numbers = " | ".join(map(str, range(1, n_turns + 1)))
    print(f"\nTokens read of those that are new, turn by turn\n\n| model | template | {numbers} |")
    print(f"|---|---|{'---|' * n_turns}")
    for architecture in architectures:
        for name, (template, budget) in TEMPLATES.items():
            (folder / str(budget)).mkdir(exist_ok=True)
            path = families.write(folder / str(budget), architecture, chat_template=template, added=families.TAGS)
            with load(path, None, EngineOptions(n_ctx=4096)) as engine:
                found = families.converse(engine, n_turns, think_budget=budget)
            row = " | ".join(f"{turn.n_read} of {turn.n_new}" for turn in found)
            print(f"| {architecture} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
