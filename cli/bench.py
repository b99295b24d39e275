"""`edgellm bench`: plain against speculative decoding on this machine, over your own prompts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edgellm.cli import _options as opt
from edgellm.cli._lora import adapters_json, loras
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.runtime.comparison import Report, Run

# Short, of several kinds, and ours: for a first look. Figures worth quoting come from --prompts.
PROMPTS = (
    ("code", "Write a Python function that returns the n-th Fibonacci number without recursion."),
    ("code", "Write a shell one-liner that counts the lines of every .py file below this folder."),
    ("maths", "A tank holds 240 litres and loses 7.5 litres an hour. After how many hours is it three quarters full?"),
    ("prose", "Explain in two short paragraphs why the sky is blue and sunsets are red."),
    ("prose", "Write a polite e-mail that moves a meeting from Tuesday at ten to Thursday at three."),
    ("edit", "Correct the spelling, change nothing else: 'Teh quick brwon fox jmups over the layz dog, twise.'"),
)

_MAX_TOKENS = 128  # an answer


@opt.takes_sampling("temperature", "seed", seed=0)
def bench(
    model: opt.Model = None,
    draft: Annotated[
        list[str],
        opt.option(
            "--draft",
            "-d",
            help="Drafter: a model, `copy`, or MODEL+copy. May be repeated: all are compared.",
            metavar="MODEL",
            panel=opt.DRAFTING,
        ),
    ] = [],  # noqa: B006
    lora: opt.Lora = [],  # noqa: B006
    prompts: Annotated[
        Path | None, opt.option("--prompts", "-f", help="JSON lines of {id, task, turns}.", metavar="FILE")
    ] = None,
    limit: Annotated[
        int | None, opt.option("--limit", min=1, help="Only the first N prompts of the file.", metavar="N")
    ] = None,
    max_tokens: opt.MaxTokens = _MAX_TOKENS,
    draft_tokens: opt.DraftTokens = None,
    ctx: opt.Ctx = None,
    no_learn: opt.NoLearn = False,
    assume_cost: opt.AssumeCost = None,
    ablate: Annotated[
        bool,
        opt.option("--ablate", help="Compare each part of drafting, from none to all of them.", panel=opt.DRAFTING),
    ] = False,
    exact: opt.Exact = False,
    sampling: opt.Sampling = {},  # noqa: B006
    repeat: Annotated[int, opt.option("--repeat", min=1, help="Measure every prompt so many times.", metavar="N")] = 1,
    threads: opt.Threads = None,
    kv: opt.Kv = None,
    budget: opt.Budget = None,
    plan: opt.Plan = None,
    offline: opt.Offline = False,
    json_: opt.Json = False,
) -> None:
    """Measure plain and speculative decoding in turn over the same prompts, and compare their outputs."""
    from edgellm.cli._machine import machine
    from edgellm.cli._models import asked_bytes, check_kv, drafting_options, resolve_pair
    from edgellm.cli._plans import models_of, read_plan
    from edgellm.runtime.bringup.planning import EngineOptions, plan_here
    from edgellm.runtime.comparison import PLAIN, Prompt, ablation, read_prompts, run
    from edgellm.runtime.engine import load_target, with_drafter
    from edgellm.runtime.sampling import Sampling

    chosen = (
        read_prompts(prompts, limit)
        if prompts is not None
        else [Prompt(f"{task}/{i}", task, (text,)) for i, (task, text) in enumerate(PROMPTS)][:limit]
    )
    planned = read_plan(plan, ctx=ctx, kv=kv, draft_tokens=draft_tokens) if plan else None
    if planned is not None:
        model, planned_draft = models_of(planned, model, None)
        lora = lora or list(planned.loras)
        draft = draft or [f"{planned_draft}+copy" if planned.drafter else "copy"]
    target, default_draft = resolve_pair(
        model, draft[0].removesuffix("+copy") if _models_in(draft) else None, offline=offline
    )
    options = EngineOptions(
        n_ctx=ctx,
        **drafting_options(draft_tokens, assume_cost=assume_cost) | {"learn": "off" if no_learn else "fresh"},
        exact=exact,
        kv=check_kv(kv) if kv is not None else None,
        n_threads=threads,
        budget_bytes=asked_bytes(budget),
        loras=loras(lora),
    )
    configs = _configs(draft, default_draft, offline)
    largest = max((path for _, path, _ in configs if path), key=lambda path: path.stat().st_size, default=None)
    planned, note = plan_here(target.path, largest, options, planned)
    out.detail(note)
    plain = load_target(target.path, options, planned)
    engines = {PLAIN: plain}
    try:
        if ablate:
            engines |= ablation(plain, default_draft.path if default_draft else None)
        else:
            for name, path, copy in configs:
                engines[name] = with_drafter(plain, path, copy=copy)
        for engine in engines.values():
            for note in engine.notes:
                out.detail(note)
        n_runs = len(engines) * len(chosen) * repeat
        with _progress(n_runs) as on_run:
            report = run(
                engines,
                chosen,
                max_tokens=max_tokens or _MAX_TOKENS,
                sampling=Sampling(**sampling),
                repeat=repeat,
                on_run=on_run,
            )
        facts = machine(plain.backend)
        described = [
            {
                "name": name,
                "target": target.name,
                "draft": engines[name].draft_model and engines[name].draft_model.path.name,  # type: ignore[union-attr]
                "draft_tokens": engines[name].n_draft,
                "loras": adapters_json(options.loras),
                "exact": exact,
                "max_tokens": max_tokens,
                "n_ctx": plain.backend.n_ctx,
                "temperature": sampling["temperature"],
                "explained": drafter.explain() if (drafter := engines[name].controller) else "nothing drafts",
            }
            for name in report.configs
        ]
    finally:
        for engine in engines.values():
            engine.drafter.close()
        plain.close()
    if json_:
        out.json(to_json(report, described, facts))
    else:
        (_show_ablation if ablate else _show)(report, target.name, facts, described)


def _models_in(drafts: list[str]) -> bool:
    return bool(drafts) and drafts[0] not in ("copy", "none")


def _configs(drafts: list[str], default: Any, offline: bool) -> list[tuple[str, Path | None, bool]]:
    """(name, drafter file, whether copying comes first) of every configuration."""
    from edgellm.cli._models import resolve

    if not drafts:
        return [(f"{default.name}+copy" if default else "copy", default.path if default else None, True)]
    configs: list[tuple[str, Path | None, bool]] = []
    for text in drafts:
        name, plus, tail = text.rpartition("+copy")
        reference = text if not plus or tail else name
        if reference == "none":
            continue
        if reference == "copy":
            configs.append(("copy", None, True))
        else:
            found = resolve(reference, offline=offline)
            copies = reference != text
            configs.append((found.name + ("+copy" if copies else ""), found.path, copies))
    return configs


class _progress:
    """A counter on stderr while the runs go on."""

    def __init__(self, n_runs: int) -> None:
        self._n_runs, self._n_done = n_runs, 0

    def __enter__(self) -> Any:
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


def to_json(report: Report, configs: list[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    """The documented object; `tasks` and `overall` at its top are the first configuration's."""
    from dataclasses import asdict

    for config in configs:
        config["tasks"] = {task: report.summary(config["name"], task) for task in report.tasks}
        config["overall"] = report.summary(config["name"])
    return {
        "machine": machine,
        "configs": configs,
        "tasks": configs[0]["tasks"] if configs else {},
        "overall": configs[0]["overall"] if configs else {},
        "noise": report.noise,
        "prompts": [
            {
                "id": run.prompt.id,
                "task": run.prompt.task,
                "config": run.config,
                **run.stats.to_json(),
                "rest_s": run.rest_s,
                "identical": (run.config, run.prompt.id) not in report.differences,
                "difference": asdict(found) if (found := report.differences.get((run.config, run.prompt.id))) else None,
            }
            for run in report.runs
        ],
    }


def _show_ablation(report: Report, target: str, facts: dict[str, Any], described: list[dict[str, Any]]) -> None:
    """One row for each part of drafting."""
    rows = []
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
    out.table(
        ["drafting", "tok/round ", "accepted ", "ratio (95 %) ", "identical ", "time"], rows, title=f"{target}, ablated"
    )
    out.text(f"  controller: {described[-1]['explained']}")
    _show_machine(facts)


def _show(report: Report, target: str, facts: dict[str, Any], described: list[dict[str, Any]]) -> None:
    for config, facts_of_config in zip(report.configs, described, strict=True):
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
        out.table(columns, rows, title=f"{target} drafted for by {config}")
        s = report.summary(config)
        for who, n in sorted(s["drafted_by"].items()):
            out.text(f"  {who} drafted {n:,} tokens, {s['acceptance_by'][who]:.0%} accepted")
        out.text(f"  {facts_of_config['explained']}")
    for (config, prompt_id), found in report.differences.items():
        out.text(
            f"  {config}, {prompt_id}: differs at token {found.position} of answer {found.turn + 1}: "
            f"{found.plain!r} became {found.speculative!r}, logit gap {found.gap:.3f}"
        )
    if report.noise is not None:
        out.text(f"  numerical noise of this machine: pass width moves logit differences by up to {report.noise:.3f}")
    _show_machine(facts)


def _show_machine(facts: dict[str, Any]) -> None:
    out.text(
        f"  {facts['cpu']}, {facts['n_threads']} threads, kernels {facts['kernels']}, "
        f"peak memory {facts['peak_bytes'] / 2**20:,.0f} MiB"
    )
