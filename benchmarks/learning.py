"""A user's second hour: the same stream with nothing learnt, with warm caches, and with a drafter adapted too.

    python benchmarks/learning.py TARGET.gguf DRAFTER.gguf --prompts FILE [--prompts FILE ...] --out learning.json
        [--no-adapting] [--plot learning.png]

Each file is a user with a kind of text. The first hour is half of each user's prompts. The second hour is a shuffled
stream of which half was asked in the first hour and half is new; it is answered turn by turn by each side: one that
begins with nothing before it (cold), one that has what drafting learnt in the first hour (warm), one whose drafter has
the catalogue's adapter too (shipped), and one whose drafter was then trained on the answers of that hour (adapted).
Caches learn while they go. Greedy, one target for all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm.app import adapting
from edgellm.app.defaults import learned_folder
from edgellm.app.drafter_adapters import choose
from edgellm.app.references import resolve_pair
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


def plot(path: Path, sides: dict[str, list[dict[str, Any]]]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    for label, rows in sides.items():
        running = [total(rows[: i + 1])["tokens_per_round"] for i in range(len(rows))]
        axes.plot(range(1, len(rows) + 1), running, label=label)
    axes.set_xlabel("prompts of the second hour")
    axes.set_ylabel("tokens a pass, so far")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def stream(users: Sequence[Sequence[Prompt]], rng: random.Random) -> tuple[list[Prompt], list[Prompt], set[str]]:
    """The first hour, the second, and the ids of what the second repeats."""
    first: list[Prompt] = []
    second: list[Prompt] = []
    repeated: set[str] = set()
    for prompts in users:
        half, quarter = len(prompts) // 2, len(prompts) // 4
        first += prompts[:half]
        second += [*prompts[:quarter], *prompts[half : half + quarter]]
        repeated |= {prompt.id for prompt in prompts[:quarter]}
    rng.shuffle(first)
    rng.shuffle(second)
    return first, second, repeated


def drafter_now(target: Path, drafter: Path) -> Path:
    """The file that drafts by default, with the adapter that there is."""
    files = resolve_pair(str(target), str(drafter), offline=True)
    assert files[1] is not None
    return choose(files[0], files[1]).path


def train(target: Path, drafter: Path, minutes: float) -> dict[str, Any]:
    """Learn what the first hour left among the lessons; what was found."""
    job = adapting.prepare(str(target), str(drafter), minutes=minutes, n_tokens=1, offline=True)
    return adapting.adapt(job).to_json()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("drafter", type=Path)
    parser.add_argument("--prompts", type=Path, action="append", required=True, help="of one user each")
    parser.add_argument("--limit", type=int, default=40, help="prompts of each user")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--draft-tokens", type=int, help="a fixed length; what pays if not given")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, at most")
    parser.add_argument("--no-adapting", action="store_true", help="cold and warm alone")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["EDGELLM_HOME"] = home
        measure(arguments, Path(home))


def measure(arguments: argparse.Namespace, home: Path) -> None:
    rng, fixed = random.Random(0), arguments.draft_tokens
    users = [read_prompts(path)[: arguments.limit] for path in arguments.prompts]
    first, second, repeated = stream(users, rng)
    settings: dict[str, Any] = {
        "n_draft": N_DRAFT_MOST if fixed is None else fixed, "fixed": fixed is not None, "n_threads": arguments.threads,
    }  # fmt: skip
    target = load_target(arguments.target, EngineOptions(**settings))
    taught = _first_hour(target, arguments, settings, first)
    result: dict[str, Any] = {"first hour": total(taught), "n_prompts": len(second), "fixed": fixed}
    sides = {"cold": (None, arguments.drafter), "warm": (_copy(home / "learnt, warm"), arguments.drafter)}
    if not arguments.no_adapting:
        pair = arguments.target, arguments.drafter
        sides["shipped"] = (_copy(home / "learnt, shipped"), drafter_now(*pair))
        result["adapting"] = train(*pair, arguments.minutes)
        sides["adapted"] = (_copy(home / "learnt, adapted"), drafter_now(*pair))
    engines = {
        name: with_drafter(
            target,
            path,
            copy=True,
            options=EngineOptions(**settings, learned=folder, learn="kept" if folder is not None else "fresh"),
        )
        for name, (folder, path) in sides.items()
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for i, prompt in enumerate(second):
        names = [*engines]
        for name in names[i % len(names) :] + names[: i % len(names)]:
            rows[name].append({**ask(engines[name], prompt, arguments.tokens), "task": prompt.task})
    report(result, rows, repeated)
    arguments.out.write_text(json.dumps({**result, "prompts": rows}, indent=2))
    if arguments.plot:
        plot(arguments.plot, rows)
    for engine in engines.values():
        engine.drafter.close()
    target.close()


def _first_hour(
    target: Engine, arguments: argparse.Namespace, settings: dict[str, Any], prompts: Sequence[Prompt]
) -> list[dict[str, Any]]:
    """Answer it; what was learnt lies in the folder then."""
    options = EngineOptions(**settings, learned=learned_folder(), learn="kept")
    engine = with_drafter(target, arguments.drafter, copy=True, options=options)
    rows = [ask(engine, prompt, arguments.tokens) for prompt in prompts]
    engine.save()
    engine.drafter.close()
    return rows


def _copy(folder: Path) -> Path:
    shutil.copytree(learned_folder(), folder)
    return folder


def report(result: dict[str, Any], rows: dict[str, list[dict[str, Any]]], repeated: set[str]) -> None:
    """Fill `result` with each side's totals, and print them."""
    tasks = dict.fromkeys(row["task"] for side in rows.values() for row in side)
    for name, side in rows.items():
        result[name] = total(side)
        result[f"{name}, repeated"] = total([row for row in side if row["id"] in repeated])
        new = [row for row in side if row["id"] not in repeated]
        result[f"{name}, new"] = total(new)
        for task in tasks:
            if of_task := [row for row in new if row["task"] == task]:
                result[f"{name}, new, {task}"] = total(of_task)
    for name, figures in result.items():
        if isinstance(figures, dict) and "tokens_per_round" in figures:
            print(f"{name:<28} {figures['tokens_per_round']:.2f} tokens a pass, {figures['acceptance']:.0%} accepted, "
                  f"{figures['tokens_per_s']:.1f} tok/s")  # fmt: skip


if __name__ == "__main__":
    main()
