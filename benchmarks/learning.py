"""A user's second hour: the same stream of prompts with what the first hour taught, and without.

    python benchmarks/learning.py TARGET.gguf [DRAFTER.gguf] --prompts FILE --out learning.json [--plot learning.png]

The first hour is half of the prompts. The second hour is a shuffled stream of which half was asked in the first
hour and half is new; it is answered twice, turn by turn: by a drafter that has learnt all along (warm), and by one that
begins with nothing before the second hour (cold). Both learn while they go. Greedy, one target for both.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from edgellm.memory.context import N_DRAFT_MOST
from edgellm.runtime.bringup.load import load_target, with_drafter
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.comparison import Prompt, read_prompts
from edgellm.runtime.conversation import ChatSession
from edgellm.runtime.engine import Engine


def ask(engine: Engine, prompt: Prompt, n_tokens: int) -> dict[str, Any]:
    """Answer all turns; what it cost."""
    engine.backend.truncate(0)
    session = ChatSession(engine)
    n_new = n_rounds = n_drafted = n_accepted = 0
    decode_s = 0.0
    for turn in prompt.turns:
        for _ in session.reply(turn, max_tokens=n_tokens):
            pass
        assert session.last is not None
        stats = session.last.stats
        n_new, n_rounds = n_new + stats.n_new, n_rounds + stats.n_rounds
        n_drafted, n_accepted = n_drafted + stats.n_drafted, n_accepted + stats.n_accepted
        decode_s += stats.decode_s
    return {
        "id": prompt.id, "n_new": n_new, "n_rounds": n_rounds, "n_drafted": n_drafted, "n_accepted": n_accepted,
        "decode_s": decode_s,
    }  # fmt: skip


def total(rows: list[dict[str, Any]]) -> dict[str, float]:
    sums = {key: sum(row[key] for row in rows) for key in ("n_new", "n_rounds", "n_drafted", "n_accepted", "decode_s")}
    return {
        "tokens_per_round": sums["n_new"] / sums["n_rounds"],
        "acceptance": sums["n_accepted"] / max(1, sums["n_drafted"]),
        "tokens_per_s": sums["n_new"] / sums["decode_s"],
    }


def plot(path: Path, warm: list[dict[str, Any]], cold: list[dict[str, Any]]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for rows, label in ((cold, "cold"), (warm, "warm")):
        running = [total(rows[: i + 1])["tokens_per_round"] for i in range(len(rows))]
        axes.plot(range(1, len(rows) + 1), running, label=label)
    axes.set_xlabel("prompts of the second hour")
    axes.set_ylabel("tokens a pass, so far")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("drafter", type=Path, nargs="?")
    parser.add_argument("--prompts", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, default=60, help="prompts in all")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--draft-tokens", type=int, help="a fixed length; what pays if not given")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    files = [read_prompts(path) for path in arguments.prompts]
    prompts = [prompt for several in zip(*files, strict=False) for prompt in several][: arguments.limit]
    rng = random.Random(0)
    rng.shuffle(prompts)
    first, new = prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :]
    second = first[: len(first) // 2 * 2 : 2] + new[: len(first) // 2]
    rng.shuffle(second)
    fixed = arguments.draft_tokens
    options = EngineOptions(
        n_draft=N_DRAFT_MOST if fixed is None else fixed,
        fixed=fixed is not None,
        learn="fresh",
        n_threads=arguments.threads,
    )
    target = load_target(arguments.target, options)
    warm = with_drafter(target, arguments.drafter, copy=True)
    cold = with_drafter(target, arguments.drafter, copy=True)
    taught = [ask(warm, prompt, arguments.tokens) for prompt in first]
    rows: dict[str, list[dict[str, Any]]] = {"warm": [], "cold": []}
    for i, prompt in enumerate(second):
        for name, engine in (("warm", warm), ("cold", cold)) if i % 2 else (("cold", cold), ("warm", warm)):
            rows[name].append(ask(engine, prompt, arguments.tokens))
    repeated = {prompt.id for prompt in first}
    result: dict[str, Any] = {"first hour": total(taught), "n_prompts": len(second), "fixed": fixed}
    for name, side in rows.items():
        result[name] = total(side)
        result[f"{name}, repeated"] = total([row for row in side if row["id"] in repeated])
        result[f"{name}, new"] = total([row for row in side if row["id"] not in repeated])
    result["prompts"] = rows
    arguments.out.write_text(json.dumps(result, indent=2))
    if arguments.plot:
        plot(arguments.plot, rows["warm"], rows["cold"])
    for name, figures in result.items():
        if isinstance(figures, dict) and "tokens_per_round" in figures:
            print(f"{name:<16} {figures['tokens_per_round']:.2f} tokens a pass, {figures['acceptance']:.0%} accepted, "
                  f"{figures['tokens_per_s']:.1f} tok/s")  # fmt: skip
    for engine in (warm, cold):
        engine.drafter.close()
    target.close()


if __name__ == "__main__":
    main()
