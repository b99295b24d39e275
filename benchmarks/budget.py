"""Speed against memory: the best plan of each budget, run with and without drafting.

    python benchmarks/budget.py --target FILE --drafter FILE --output docs/budget

Every budget is planned and run in a process of its own (`runtime/bringup/calibrate.py`); its peak and speeds are kept.
The predicted bound is the least memory with which a draft model gains by the plan; the measured one is the peak of the
smallest run that had a draft model and was faster than the same target without one. Writes OUTPUT.json and, with
matplotlib, OUTPUT.png; prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edgellm.memory.cpu import usable_cores
from edgellm.memory.device import budget_device
from edgellm.memory.gguf import read_header
from edgellm.memory.plan import MemoryPlan
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import from_header
from edgellm.memory.solve import solve
from edgellm.memory.units import MIB
from edgellm.runtime.bringup.calibrate import measure


def planned(target: Path, drafter: Path, budget_bytes: int) -> MemoryPlan:
    ask = PlanRequest(loading="packed", n_threads=usable_cores(), keep_drafter=True)
    shapes = from_header(read_header(target)), from_header(read_header(drafter))
    return solve(*shapes, budget_device(budget_bytes), ask).plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    largest = planned(arguments.target, arguments.drafter, 2**40)
    bound = largest.bound_bytes or largest.process_bytes
    # Two below the bound, where the draft model has to go; then seven steps up to where nothing is trimmed.
    budgets = [bound - step * MIB for step in (100, 40)] + [bound]
    budgets += [bound + (largest.process_bytes - bound) * step // 7 for step in range(1, 8)]
    rows: list[dict[str, Any]] = []
    for budget in budgets:
        plan = planned(arguments.target, arguments.drafter, budget)
        if not plan.fits:
            rows.append({"budget_bytes": budget, "fits": False})
            continue
        found = measure(arguments.target, arguments.drafter if plan.settings.drafter else None, plan)
        rows.append(
            {
                "budget_bytes": budget, "fits": True, "drafter": plan.drafter is not None,
                "predicted_bytes": plan.process_bytes, "peak_bytes": found.peak_bytes,
                "plain_tokens_per_s": found.plain_tokens_per_s, "tokens_per_s": found.tokens_per_s,
                "trims": [step.name for step in plan.steps if not step.cost.startswith("none")],
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    gains = [
        row["peak_bytes"] for row in rows if row.get("drafter") and row["tokens_per_s"] > row["plain_tokens_per_s"]
    ]
    result = {"predicted_bound_bytes": bound, "measured_bound_bytes": min(gains, default=None), "rows": rows}
    if gains:
        result["bound_error"] = round(bound / min(gains) - 1, 4)
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    arguments.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, arguments.output.with_suffix(".png"))


def draw(result: dict[str, Any], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("no picture: matplotlib is not installed")
    rows = [row for row in result["rows"] if row["fits"]]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("plain_tokens_per_s", "without drafting"), ("tokens_per_s", "as planned")):
        axes.plot([row["budget_bytes"] / MIB for row in rows], [row[key] for row in rows], marker="o", label=label)
    axes.axvline(result["predicted_bound_bytes"] / MIB, c="grey", lw=0.8, ls="--", label="predicted bound")
    if result["measured_bound_bytes"]:
        axes.axvline(result["measured_bound_bytes"] / MIB, c="tab:red", lw=0.8, ls=":", label="measured bound")
    axes.set(xlabel="budget, MiB", ylabel="tokens a second")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
