"""Whether learning beside a chat is felt: the same questions with a child that learns between the answers, and without.

    python benchmarks/idle.py --home FOLDER --prompts FILE --out idle.jsonl [--pause 15] [--limit 20] [--tokens 96]

FOLDER is an EDGELLM_HOME with the default pair and with lessons that were not learnt yet, so that there is something to
learn from the first moment on; it is copied, and left as it is. Each question is asked twice, in turn first with
learning or first without, after a pause in which the child runs. What is told: time to the first text, time of a round,
tokens a second, and the memory of both processes. A drafter that is exchanged on the way is said: from there on the two
sides draft differently, so rounds are told by tokens as well.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ask(session: Any, text: str, n_tokens: int) -> dict[str, Any]:
    """Answer one question of a conversation of its own; what it cost, times in seconds."""
    session.clear()
    began_s, first_s, last_s = time.perf_counter(), 0.0, 0.0
    rounds: list[float] = []
    for _ in session.reply(text, max_tokens=n_tokens):
        now = time.perf_counter()
        if not first_s:
            first_s = now - began_s
        else:
            rounds.append(now - last_s)
        last_s = now
    stats = session.last.stats
    return {
        "first_s": first_s, "rounds_s": rounds, "n_new": stats.n_new, "n_rounds": stats.n_rounds,
        "tokens_per_s": stats.n_new / stats.decode_s, "text": session.last.text,
    }  # fmt: skip


def memory_of_all() -> tuple[int, int]:
    """Resident bytes of this process and of its children."""
    import psutil

    own = psutil.Process()
    return own.memory_info().rss, sum(child.memory_info().rss for child in own.children(recursive=True))


def measure(arguments: argparse.Namespace, home: Path) -> list[dict[str, Any]]:
    os.environ["EDGELLM_HOME"] = str(home)

    from edgellm.app.defaults import drafting_options
    from edgellm.app.idle_adapting import IdleAdapting
    from edgellm.app.loading import prepare
    from edgellm.app.next_training import IdleBounds
    from edgellm.runtime.bringup.planning import EngineOptions
    from edgellm.runtime.comparison import read_prompts
    from edgellm.runtime.conversation import ChatSession

    pair = prepare(None, None, EngineOptions(**drafting_options()), offline=True)
    rows: list[dict[str, Any]] = []
    with pair.open() as engine, arguments.out.open("w") as out:
        session = ChatSession(engine)
        ask(session, "Say hello.", 8)
        for i, prompt in enumerate(read_prompts(arguments.prompts)[: arguments.limit]):
            for side in ("on", "off") if i % 2 else ("off", "on"):
                row: dict[str, Any] = {"id": prompt.id, "side": side}
                if side == "on":
                    with IdleAdapting(session, pair, IdleBounds(on_battery=True)) as learning:
                        time.sleep(arguments.pause)
                        row["memory"] = memory_of_all()
                        with learning.answering():
                            row |= ask(session, prompt.turns[0], arguments.tokens)
                else:
                    time.sleep(arguments.pause)
                    row["memory"] = memory_of_all()
                    row |= ask(session, prompt.turns[0], arguments.tokens)
                rows.append(row)
                out.write(json.dumps(row) + "\n")
                out.flush()
    return rows


def spread(values: Sequence[float]) -> str:
    """Median and 95th percentile, in milliseconds."""
    ranked = sorted(values)
    return f"{1000 * statistics.median(ranked):.0f}, {1000 * ranked[int(0.95 * (len(ranked) - 1))]:.0f} ms"


def report(rows: Sequence[dict[str, Any]]) -> None:
    texts = {
        side: [row["text"] for row in sorted(rows, key=lambda r: r["id"]) if row["side"] == side]
        for side in ("on", "off")
    }
    for side in ("off", "on"):
        group = [row for row in rows if row["side"] == side]
        rounds = [one for row in group for one in row["rounds_s"]]
        own, children = (max(row["memory"][i] for row in group) / 2**20 for i in (0, 1))
        print(f"{side:>4}: first text {spread([row['first_s'] for row in group])}; a round {spread(rounds)}; "
              f"{statistics.median(row['tokens_per_s'] for row in group):.1f} tok/s; "
              f"memory {own:.0f} MiB and {children:.0f} MiB of the child")  # fmt: skip
    print(f"answers alike: {sum(a == b for a, b in zip(texts['on'], texts['off'], strict=True))} of {len(texts['on'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--pause", type=float, default=15.0, help="seconds before a question")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        shutil.copytree(arguments.home, home, symlinks=True)
        report(measure(arguments, home))


if __name__ == "__main__":
    main()
