"""`edgellm bench`: plain against speculative decoding on this machine, over your own prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._sampling_options import ChosenSampling, takes_sampling

if TYPE_CHECKING:
    from edgellm.app.benchmark import Measured
    from edgellm.runtime.comparison import Run

_MAX_TOKENS = 128  # an answer


Drafters = Annotated[
    list[str],
    opt.option(
        "--draft",
        "-d",
        help="Drafter: a model, `copy`, or MODEL+copy. May be repeated: all are compared.",
        metavar="MODEL",
        panel=opt.DRAFTING,
    ),
]
Prompts = Annotated[Path | None, opt.option("--prompts", "-f", help="JSON lines of {id, task, turns}.", metavar="FILE")]
Limit = Annotated[int | None, opt.option("--limit", min=1, help="Only the first N prompts of the file.", metavar="N")]
Ablate = Annotated[
    bool,
    opt.option("--ablate", help="Compare each part of drafting, from none to all of them.", panel=opt.DRAFTING),
]
Repeat = Annotated[int, opt.option("--repeat", min=1, help="Measure every prompt so many times.", metavar="N")]


@takes_sampling("temperature", "seed", seed=0)
def bench(
    model: opt.Model = None,
    draft: Drafters = [],  # noqa: B006
    draft_adapter: opt.DraftAdapter = None,
    lora: opt.Lora = [],  # noqa: B006
    prompts: Prompts = None,
    limit: Limit = None,
    max_tokens: opt.MaxTokens = _MAX_TOKENS,
    draft_tokens: opt.DraftTokens = None,
    ctx: opt.Ctx = None,
    no_learn: opt.NoLearn = False,
    assume_cost: opt.AssumeCost = None,
    ablate: Ablate = False,
    exact: opt.Exact = False,
    sampling: ChosenSampling = {},  # noqa: B006
    repeat: Repeat = 1,
    threads: opt.Threads = None,
    kv: opt.Kv = None,
    budget: opt.Budget = None,
    plan: opt.Plan = None,
    offline: opt.Offline = False,
    json_: opt.Json = False,
) -> None:
    """Measure plain and speculative decoding in turn over the same prompts, and compare their outputs."""
    from edgellm.app import benchmark
    from edgellm.app.defaults import asked_bytes, cache_type, drafting_options
    from edgellm.cli._listener import TERMINAL
    from edgellm.runtime.bringup.planning import EngineOptions
    from edgellm.runtime.sampling import Sampling

    options = EngineOptions(
        n_ctx=ctx,
        **drafting_options(draft_tokens, assume_cost=assume_cost) | {"learn": "off" if no_learn else "fresh"},
        exact=exact,
        kv=cache_type(kv),
        n_threads=threads,
        budget_bytes=asked_bytes(budget),
    )
    asked = benchmark.Benchmark(
        model=model,
        drafts=draft,
        options=options,
        prompts=benchmark.prompts_of(prompts, limit),
        sampling=Sampling(**sampling),
        max_tokens=max_tokens or _MAX_TOKENS,
        plan=plan,
        loras=lora,
        draft_adapter=draft_adapter,
        repeat=repeat,
        ablate=ablate,
        offline=offline,
    )
    measured = benchmark.measure(asked, watch=_Progress, listener=TERMINAL)
    if json_:
        out.json(measured.to_json())
    else:
        (_show_ablation if ablate else _show)(measured)


class _Progress:
    """A counter on stderr while the runs go on."""

    def __init__(self, n_runs: int) -> None:
        self._n_runs, self._n_done = n_runs, 0

    def __enter__(self) -> Callable[[Run], None]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=out.console(stderr=True),
            disable=out.quiet,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("measuring", total=self._n_runs)
        return self._on_run

    def _on_run(self, run: Run) -> None:
        self._bar.update(self._task, advance=1, description=f"{run.prompt.task} · {run.config}")

    def __exit__(self, *error: object) -> None:
        self._bar.stop()


def _show_ablation(measured: Measured) -> None:
    """One row for each part of drafting."""
    report, rows = measured.report, []
    for config in report.configs:
        s = report.summary(config)
        total_s = sum(s["time_s"].values()) or math.inf
        rows.append(
            [
                config,
                f"{s['tokens_per_round']:.2f}",
                f"{s['acceptance']:.0%}",
                f"{s['ratio']:.2f} ({s['ratio_low']:.2f}-{s['ratio_high']:.2f})",
                f"{s['identical']} of {s['n_prompts']}",
                " ".join(f"{name} {value / total_s:.1%}" for name, value in s["time_s"].items()),
            ]
        )
    columns = ["drafting", "tok/round ", "accepted ", "ratio (95 %) ", "identical ", "time"]
    out.table(columns, rows, title=f"{measured.target}, ablated")
    out.text(f"  controller: {measured.configs[-1]['explained']}")
    _show_machine(measured.machine)


def _show(measured: Measured) -> None:
    report = measured.report
    for config, described in zip(report.configs, measured.configs, strict=True):
        rows = []
        for task in [*report.tasks, None] if len(report.tasks) > 1 else [None]:
            s = report.summary(config, task)
            total_s = sum(s["time_s"].values()) or math.inf
            rows.append(
                [
                    task or "all",
                    s["n_prompts"],
                    f"{s['plain_tokens_per_s']:.1f}",
                    f"{s['tokens_per_s']:.1f}",
                    f"{s['ratio']:.2f} ({s['ratio_low']:.2f}-{s['ratio_high']:.2f})",
                    f"{s['tokens_per_round']:.2f}",
                    f"{s['acceptance']:.0%}",
                    f"{s['identical']} of {s['n_prompts']}",
                    " ".join(f"{name} {value / total_s:.1%}" for name, value in s["time_s"].items()),
                ]
            )
        columns = [
            "task",
            "prompts ",
            "plain tok/s ",
            "tok/s ",
            "ratio (95 %) ",
            "tok/round ",
            "accepted ",
            "identical ",
            "time",
        ]
        out.table(columns, rows, title=f"{measured.target} drafted for by {config}")
        s = report.summary(config)
        for who, n in sorted(s["drafted_by"].items()):
            out.text(f"  {who} drafted {n:,} tokens, {s['acceptance_by'][who]:.0%} accepted")
        if described["draft_adapter"] is not None:
            out.text(f"  {described['draft_adapter']['note']}")
        out.text(f"  {described['explained']}")
    for (config, prompt_id), found in report.differences.items():
        out.text(
            f"  {config}, {prompt_id}: differs at token {found.position} of answer {found.turn + 1}: "
            f"{found.plain!r} became {found.speculative!r}, logit gap {found.gap:.3f}"
        )
    if report.noise is not None:
        out.text(f"  numerical noise of this machine: pass width moves logit differences by up to {report.noise:.3f}")
    _show_machine(measured.machine)


def _show_machine(facts: dict[str, Any]) -> None:
    out.text(
        f"  {facts['cpu']}, {facts['n_threads']} threads, kernels {facts['kernels']}, "
        f"peak memory {facts['peak_bytes'] / 2**20:,.0f} MiB"
    )
