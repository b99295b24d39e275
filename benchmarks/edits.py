"""Edits: a program is written, then asked for once more with a changed name. Tokens a pass of the second answer.

    python benchmarks/edits.py TARGET.gguf [DRAFTER.gguf] [--tokens 800]

Prompts of our own. Greedy; drafting begins with nothing learnt for each of them, so what is copied is copied from the
conversation. Each second turn is also answered plainly, for the speed ratio and to compare the texts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgellm.runtime.bringup.load import load_target, with_drafter
from edgellm.runtime.bringup.planning import EngineOptions, plan_here
from edgellm.runtime.conversation import ChatSession

PROGRAMS = (
    (
        "Write a Python program of about 60 lines that keeps a to-do list in a JSON file, with functions to add, "
        "remove, list and complete tasks. Code only.",
        "Rename the function that completes a task to finish_task everywhere. Print the whole program again.",
    ),
    (
        "Write a Python class Matrix of about 60 lines with addition, multiplication, transposition and a readable "
        "__repr__, and a main function that shows each. Code only.",
        "Rename the class to Grid everywhere. Print the whole program again.",
    ),
    (
        "Write a C program of about 60 lines that implements a stack of integers with push, pop, peek and a small menu "
        "in main. Code only.",
        "Rename what holds the top of the stack to head everywhere. Print the whole program again.",
    ),
    (
        "Write a JavaScript program of about 60 lines for Node that reads a CSV file, computes the mean of each column "
        "and prints a table. Code only.",
        "Rename the function that computes the mean to average everywhere. Print the whole program again.",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("drafter", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=800)
    arguments = parser.parse_args()
    options = EngineOptions(n_ctx=4096, learn="fresh")
    plan, _ = plan_here(arguments.target, arguments.drafter, options)
    plain = load_target(arguments.target, options, plan)
    print("| program | tokens, first answer | second | tokens a pass, second | speed, second | same text |")
    print("|---|---|---|---|---|---|")
    n_tokens = n_passes = 0
    for program, change in PROGRAMS:
        plain.backend.truncate(0)
        engine = with_drafter(plain, arguments.drafter, copy=True)
        session = ChatSession(engine)
        for _ in session.reply(program, max_tokens=arguments.tokens):
            pass
        assert session.last is not None
        first, before = session.last, list(session.messages)
        for _ in session.reply(change, max_tokens=arguments.tokens):
            pass
        second = session.last
        reference = ChatSession(plain)
        reference.messages = before
        for _ in reference.reply(change, max_tokens=arguments.tokens):
            pass
        assert reference.last is not None
        ratio = second.stats.tokens_per_s / reference.last.stats.tokens_per_s
        print(f"| {program[:50]} | {first.stats.n_new} | {second.stats.n_new} | {second.stats.tokens_per_round:.2f} | "
              f"{ratio:.2f} x plain | {second.tokens == reference.last.tokens} |", flush=True)  # fmt: skip
        n_tokens, n_passes = n_tokens + second.stats.n_new, n_passes + second.stats.n_rounds
        engine.drafter.close()
    print(f"\n{n_tokens / n_passes:.2f} tokens a pass on all second turns together")


if __name__ == "__main__":
    main()
