"""Predicted against measured peak memory, over configurations of real models.

    python benchmarks/memory.py --target FILE --drafter FILE [--drafter FILE] [--small FILE] --output docs/memory

Each configuration runs in a process of its own: load, read a prompt of two batches, generate with drafting, and report
VmHWM (the most that was ever resident) and PSS. The prediction is made before, by formula and by llama.cpp's own sizes.
Writes OUTPUT.csv and, with matplotlib, OUTPUT.png; prints a Markdown table. Linux alone.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.memory.buffer_sizes import Sizer
from edgellm.memory.buffers import estimate
from edgellm.memory.context import ContextSettings, KvType
from edgellm.memory.cpu import usable_cores
from edgellm.memory.gguf import read_header
from edgellm.memory.plan import Limit, Loading, MemoryPlan, PairSettings, plan
from edgellm.memory.shape import from_header
from edgellm.memory.stored import plan_from_json
from edgellm.memory.units import MIB

N_DRAFT = 4
DRAFT_N_UBATCH = 64


@dataclass(frozen=True, slots=True)
class Configuration:
    target: Path
    drafter: Path | None
    n_ctx: int
    kv: KvType = "f16"
    n_ubatch: int = 128
    loading: Loading = "copied"


def configurations(target: Path, drafters: list[Path], small: list[Path]) -> list[Configuration]:
    alone = [Configuration(target, None, n_ctx) for n_ctx in (512, 2048, 4096, 8192, 16_384, 32_768)]
    alone += [Configuration(target, None, n_ctx, "q8_0") for n_ctx in (4096, 16_384, 32_768)]
    alone += [Configuration(target, None, n_ctx, "q4_0") for n_ctx in (4096, 32_768)]
    alone += [Configuration(target, None, 4096, "f16", n_ubatch) for n_ubatch in (32, 64, 256, 512)]
    pairs = [
        Configuration(target, drafter, n_ctx, kv)
        for drafter in drafters
        for n_ctx, kv in ((2048, "f16"), (4096, "f16"), (4096, "q8_0"), (16_384, "f16"), (16_384, "q8_0"))
    ]
    mapped = [Configuration(target, None, 4096, loading="mapped")]
    mapped += [Configuration(target, drafter, 4096, loading="mapped") for drafter in drafters]
    others = [Configuration(path, None, n_ctx, kv) for path in small for n_ctx, kv in ((8192, "f16"), (4096, "q8_0"))]
    packed = [Configuration(target, drafter, 4096, loading="packed") for drafter in (None, *drafters)]
    packed += [Configuration(path, None, 4096, loading="packed") for path in small]
    return [*alone, *pairs, *mapped, *others, *packed]


def planned(it: Configuration, sizer: Sizer) -> MemoryPlan:
    main = ContextSettings(it.n_ctx, it.n_ubatch, N_DRAFT + 1, it.kv, n_threads=usable_cores())
    target = from_header(read_header(it.target))
    drafter, own = None, None
    if it.drafter:
        drafter = from_header(read_header(it.drafter))
        own = ContextSettings(min(it.n_ctx, drafter.n_ctx_train), DRAFT_N_UBATCH, 1, it.kv, n_threads=usable_cores())
    settings = PairSettings(main, N_DRAFT, own, loading=it.loading, repack=it.loading != "packed")
    return plan(target, drafter, settings, Limit("none", 0), sizer=sizer)


def ask_llama_cpp(paths: dict[str, Path]) -> Sizer:
    from edgellm.runtime.bringup.probe import probe

    return lambda shape, settings, repack: probe(paths[shape.name], [settings], repack=repack)[0]


def child(request: str) -> None:
    """One configuration, in the engine that `edgellm chat` uses."""
    from edgellm.runtime.bringup.load import load
    from edgellm.runtime.decode import generate
    from edgellm.runtime.sampling import GREEDY

    it = json.loads(request)
    with load(it["target"], it["drafter"], plan=plan_from_json(it["plan"])) as engine:
        text = Path(__file__).read_bytes() * 4
        prompt = engine.model.vocabulary.encode(text)[
            : min(2 * engine.settings.target.n_ubatch, engine.backend.n_ctx - 80)
        ]
        engine.drafter.begin(prompt)
        steps = generate(engine.backend, engine.drafter, prompt, GREEDY, n_draft=N_DRAFT, max_new=48)
        n_new = sum(len(step.tokens) for step in steps)
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        rollup = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        peak, pss = (int(text.split()[0]) * 1024 for text in (status["VmHWM"], rollup["Pss"]))
        print(json.dumps({"peak_bytes": peak, "pss_bytes": pss, "n_new": n_new}))


def measured(it: Configuration, run: MemoryPlan) -> dict[str, int]:
    request = {"target": str(it.target), "drafter": str(it.drafter) if it.drafter else None, "plan": run.to_json()}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(request)],
        env={**os.environ, "EDGELLM_KERNELS": "auto" if it.loading == "packed" else "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--drafter", type=Path, action="append", default=[])
    parser.add_argument("--small", type=Path, action="append", default=[], help="models that are run alone")
    parser.add_argument("--output", type=Path, default=Path("memory"))
    parser.add_argument("--lock", type=Path, help="a file to lock for each run, where others measure too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child)
    asked = ask_llama_cpp({path.stem: path for path in (arguments.target, *arguments.drafter, *arguments.small)})
    predictions: list[tuple[MemoryPlan, MemoryPlan]] = []
    rows: list[dict[str, Any]] = []
    everything = configurations(arguments.target, arguments.drafter, arguments.small)
    for it in everything:
        predictions.append((planned(it, estimate), planned(it, asked)))
    for it, plans in zip(everything, predictions, strict=True):
        by_formula, by_engine = (found.total_bytes for found in plans)
        with held(arguments.lock):
            found = measured(it, plans[1])
        row = {
            "target": it.target.stem, "drafter": it.drafter.stem if it.drafter else "", "n_ctx": it.n_ctx, "kv": it.kv,
            "n_ubatch": it.n_ubatch, "loading": it.loading, "formula_mib": mib(by_formula),
            "probed_mib": mib(by_engine), "peak_mib": mib(found["peak_bytes"]), "pss_mib": mib(found["pss_bytes"]),
            "error_formula": round(by_formula / found["peak_bytes"] - 1, 5),
            "error_probed": round(by_engine / found["peak_bytes"] - 1, 5),
        }  # fmt: skip
        rows.append(row)
        print(" | ".join(map(str, row.values())), flush=True)
    with arguments.output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name in ("error_formula", "error_probed"):
        errors = [abs(row[name]) for row in rows]
        worst = max(rows, key=lambda row: abs(row[name]))
        print(
            f"{name}: {len(rows)} configurations, median {statistics.median(errors):.2%}, worst {max(errors):.2%}",
            worst,
        )
    draw(arguments.output.with_suffix(".csv"))


def mib(n_bytes: int) -> float:
    return round(n_bytes / MIB, 1)


_lock: tuple[float, Any] | None = None  # (since, file)


@contextlib.contextmanager
def held(path: Path | None) -> Iterator[None]:
    """Hold a lock for two minutes of runs at a time, so that others get their turn and runs do not wait for each."""
    global _lock
    if path is not None and _lock is None:
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
        _lock = (time.monotonic(), file)
    yield
    if _lock is not None and time.monotonic() - _lock[0] > 120:
        _lock[1].close()
        _lock = None


def draw(table: Path) -> None:
    """The scatter plot of a table that was written before."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("no picture: matplotlib is not installed")
    rows = list(csv.DictReader(table.open()))
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for paired, colour, label in ((False, "tab:blue", "target alone"), (True, "tab:orange", "target and drafter")):
        kept = [row for row in rows if bool(row["drafter"]) == paired]
        axes.scatter(
            [float(row["peak_mib"]) for row in kept], [float(row["probed_mib"]) for row in kept], s=18, c=colour,
            label=label,
        )  # fmt: skip
    limit = max(float(row["peak_mib"]) for row in rows) * 1.05
    axes.plot([0, limit], [0, limit], c="grey", lw=0.8)
    axes.set(xlabel="measured peak, MiB (VmHWM)", ylabel="predicted, MiB", xlim=(0, limit), ylim=(0, limit))
    axes.legend()
    figure.savefig(table.with_suffix(".png"), dpi=140)


if __name__ == "__main__":
    main()
