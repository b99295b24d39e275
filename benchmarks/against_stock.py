"""Ours against llama.cpp's own kernels: plain and drafted decoding of both, prompt by prompt, in turn.

    python benchmarks/against_stock.py TARGET.gguf DRAFTER.gguf --prompts FILE [--prompts FILE] [--every 3]
        [--tokens 64] [--repeat 3] [--fixed 2,3,4] [--adapted MERGED.gguf] --out runs.jsonl
    python benchmarks/against_stock.py --summary runs.jsonl

A process chooses its kernels once, so each side is a process of its own; only one of them works at a time. Each prompt
is answered by all four (with --adapted also by ours with a drafter that learnt its target, alike in all else; with
--fixed by two more for each length: ours with so many tokens a draft, by the model alone and by all sources, with the
drafter that learnt if there is one), their order turning by one each time, and the median of the repetitions counts.
Drafting begins with nothing learnt and learns from prompt to prompt. A run that was cut short goes on where it stopped.
The summary is a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sides import Side

from edgellm.runtime.comparison import Prompt, read_prompts

SIDES = {"stock": "off", "ours": os.environ.get("EDGELLM_KERNELS", "auto")}
PLAIN, DRAFTED, ADAPTED = "plain", "drafted", "drafted, adapted"
N_LEAST = 64  # generated tokens, of a prompt that a speed is told of


def work(arguments: argparse.Namespace) -> None:
    """Answer requests until there are none."""
    from edgellm.runtime import comparison
    from edgellm.runtime.backends.llama_process import kernels
    from edgellm.runtime.bringup.load import load_target, with_drafter
    from edgellm.runtime.bringup.planning import EngineOptions, plan_here

    options = EngineOptions(n_ctx=arguments.ctx, learn="fresh", n_threads=arguments.threads)
    plan, _ = plan_here(arguments.target, arguments.drafter, options)
    plain = load_target(arguments.target, options, plan)
    engines = {PLAIN: plain, DRAFTED: with_drafter(plain, arguments.drafter, copy=True)}
    if arguments.adapted and kernels().active:
        engines[ADAPTED] = with_drafter(plain, arguments.adapted, copy=True)
    if arguments.fixed and kernels().active:
        drafter = arguments.adapted or arguments.drafter
        sources: list[tuple[str, bool, Literal["off", "fresh"]]]
        sources = [("the model alone", False, "off"), ("all sources", True, "fresh")]
        for n_draft, (name, copy, learn) in product(map(int, arguments.fixed.split(",")), sources):
            fixed = EngineOptions(
                n_ctx=arguments.ctx, learn=learn, n_threads=arguments.threads, fixed=True, n_draft=n_draft
            )
            engines[f"fixed {n_draft}, {name}"] = with_drafter(plain, drafter, copy=copy, options=fixed)
    known = {name: comparison.known(engine) for name, engine in engines.items()}
    print(json.dumps(list(engines)), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        name, engine = request["config"], engines[request["config"]]
        if not request["repeat"]:
            known[name] = comparison.known(engine)
        elif engine.controller is not None:
            engine.controller.rewind(known[name])
        run = comparison.run_one(name, engine, Prompt(**request["prompt"]), arguments.tokens)
        stats = run.stats
        print(json.dumps({
            "n_new": stats.n_new, "n_rounds": stats.n_rounds, "n_drafted": stats.n_drafted, "decode_s": run.decode_s,
            "prefill_s": stats.prefill_s, "tokens": run.turns,
        }), flush=True)  # fmt: skip


def measure(arguments: argparse.Namespace, worker_arguments: Sequence[str]) -> None:
    prompts = [p for path in arguments.prompts for p in read_prompts(path)[:: arguments.every]]
    done = {(row["id"], row["repeat"]) for row in read_rows(arguments.out)} if arguments.out.exists() else set()
    sides = {name: Side(kernels, __file__, ["--worker", *worker_arguments]) for name, kernels in SIDES.items()}
    order = [(name, config) for name, side in sides.items() for config in side.hello]
    if arguments.skip_stock_drafted:
        order.remove(("stock", DRAFTED))
    for (
        name,
        config,
    ) in order:  # first calls pay for paging; what they teach is no answer to anything that is asked later
        ask(sides[name], config, Prompt("warm-up", "", ("Say hello.",)), 0)
    with arguments.out.open("a") as out:
        for i, prompt in enumerate(prompts):
            for j in range(arguments.repeat):
                if (prompt.id, j) in done:
                    continue
                shift = (i + j) % len(order)
                for name, config in (*order[shift:], *order[:shift]):
                    answer = ask(sides[name], config, prompt, j)
                    row = {"id": prompt.id, "task": prompt.task, "side": name, "config": config, "repeat": j, **answer}
                    out.write(json.dumps(row) + "\n")
                out.flush()
    for side in sides.values():
        side.close()


def ask(side: Side, config: str, prompt: Prompt, repeat: int) -> dict[str, Any]:
    answer: dict[str, Any] = side.ask({"config": config, "prompt": asdict(prompt), "repeat": repeat})
    return answer


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summarise(path: Path) -> None:
    rows = read_rows(path)
    speeds: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    tasks: dict[str, str] = {}
    tokens: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        key = row["side"], row["config"]
        texts[key][row["id"]] = row["tokens"]
        if row["n_new"] < N_LEAST:
            continue
        tasks[row["id"]] = row["task"]
        speeds[key][row["id"]].append(row["n_new"] / row["decode_s"])
        tokens[key][0] += row["n_new"]
        tokens[key][1] += row["n_rounds"]
    medians = {key: {id_: statistics.median(all_) for id_, all_ in by_id.items()} for key, by_id in speeds.items()}
    stock = medians["stock", PLAIN]
    print(f"{len(stock)} prompts with {N_LEAST} tokens or more; ratios are means over prompts of the medians\n")
    groups = {"all": set(tasks)} | {
        task: {i for i, t in tasks.items() if t == task} for task in dict.fromkeys(tasks.values())
    }
    print("| kernels | decoding | tokens/s | tokens a pass | " + " | ".join(f"x stock plain, {g}" for g in groups)
          + " | x own plain, worst prompt | mean | identical to own plain |")  # fmt: skip
    print("|---" * (7 + len(groups)) + "|")
    for (side, config), by_id in medians.items():
        own = medians[side, PLAIN]
        cells = [
            f"{statistics.mean(by_id[i] / stock[i] for i in ids if i in by_id and i in stock):.2f}"
            for ids in groups.values()
        ]
        ratios = sorted((by_id[i] / own[i], i) for i in by_id if i in own)
        same = sum(texts[side, config][i] == texts[side, PLAIN][i] for i in texts[side, config])
        made, rounds = tokens[side, config]
        speed = statistics.mean(by_id.values())
        print(f"| {side} | {config} | {speed:.1f} | {made / rounds:.2f} | " + " | ".join(cells)
              + f" | {ratios[0][0]:.2f} ({ratios[0][1]}) | {statistics.mean(r for r, _ in ratios):.2f}"
              + f" | {same} of {len(texts[side, config])} |")  # fmt: skip
        low = [f"{ratio:.2f} {id_}" for ratio, id_ in ratios if ratio < 0.97]
        if config in {DRAFTED, ADAPTED}:
            print(
                f"\n{side}, {config}: {len(low)} of {len(ratios)} prompts below 0.97: {', '.join(low)}\n",
                file=sys.stderr,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("drafter", type=Path, nargs="?")
    parser.add_argument("--prompts", type=Path, action="append")
    parser.add_argument("--every", type=int, default=1, help="take one prompt of so many")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--fixed", help="also drafts of so many tokens, on our kernels: 3, or 2,3,4")
    parser.add_argument("--adapted", type=Path, help="the drafter with its adapter merged, on our kernels")
    parser.add_argument(
        "--skip-stock-drafted", action="store_true", help="leave out the engine's kernels with a drafter"
    )
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", type=Path, help="of runs measured before")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    if arguments.summary is None:
        if not (arguments.target and arguments.drafter and arguments.prompts and arguments.out):
            parser.error("TARGET, DRAFTER, --prompts and --out are needed")
        measure(arguments, sys.argv[1:])
    summarise(arguments.summary or arguments.out)


if __name__ == "__main__":
    main()
