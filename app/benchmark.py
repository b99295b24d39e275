"""A benchmark by names: which configurations are compared, on which prompts, and the report as one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.app.adapters import adapters_json
from edgellm.app.drafter_adapters import ChosenDraft, DrafterAdapter, adapter_json, choose
from edgellm.app.listener import SILENCE, Listener
from edgellm.app.loading import refuse_settings_of_a_plan, with_loras
from edgellm.app.machine import machine
from edgellm.app.own_heads import drafts_itself, is_own
from edgellm.app.plans import models_of, read_plan
from edgellm.app.references import resolve, resolve_pair
from edgellm.memory.draft_heads import OWN_HEAD
from edgellm.memory.split import model_bytes

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile
    from edgellm.runtime.bringup.planning import EngineOptions
    from edgellm.runtime.comparison import Prompt, Report, Run
    from edgellm.runtime.engine import Engine
    from edgellm.runtime.sampling import Sampling

# Short, of several kinds, and ours: for a first look. Figures worth quoting come from a file.
PROMPTS = (
    ("code", "Write a Python function that returns the n-th Fibonacci number without recursion."),
    ("code", "Write a shell one-liner that counts the lines of every .py file below this folder."),
    ("maths", "A tank holds 240 litres and loses 7.5 litres an hour. After how many hours is it three quarters full?"),
    ("prose", "Explain in two short paragraphs why the sky is blue and sunsets are red."),
    ("prose", "Write a polite e-mail that moves a meeting from Tuesday at ten to Thursday at three."),
    ("edit", "Correct the spelling, change nothing else: 'Teh quick brwon fox jmups over the layz dog, twise.'"),
)

ABLATION: dict[str, dict[str, Any]] = {
    "copy only": {"model": False, "copy": True, "learn": "off", "fixed": True},
    "store only": {"model": False, "copy": False, "learn": "fresh", "fixed": True},
    "model, text": {"copy": False, "learn": "off", "fixed": True, "spelling": "text"},
    "model, direct": {"copy": False, "learn": "off", "fixed": True, "spelling": "direct"},
    "model, TLI": {"copy": False, "learn": "off", "fixed": True, "spelling": "tli"},
    "model, OmniDraft": {"copy": False, "learn": "off", "fixed": True, "spelling": "omnidraft"},
    "model, OmniDraft, warm": {
        "copy": False,
        "learn": "off",
        "fixed": True,
        "spelling": "omnidraft",
        "warm_start": True,
    },
    "model, stopping": {"copy": False, "learn": "off", "fixed": True, "stop": "entropy"},
    "all, fixed": {"copy": True, "learn": "fresh", "fixed": True},
    "all, controller": {"copy": True, "learn": "fresh", "fixed": False},
}
"""Parts of drafting switched on one after the other; `fixed` ones draft N_ABLATE tokens a round."""
N_ABLATE = 8


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to draft."""

    name: str
    draft: ChosenDraft | None
    copies: bool  # what was said before is drafted first
    head: bool = False  # the head inside the target's file drafts


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What is measured and compared."""

    model: str | None
    drafts: Sequence[str]  # a model, "copy", or MODEL+copy; empty: the recommended drafter with copying
    options: EngineOptions
    prompts: Sequence[Prompt]
    sampling: Sampling
    max_tokens: int  # of an answer
    plan: Path | None = None
    loras: Sequence[str] = ()
    draft_adapter: str | None = None  # as `drafter_adapters.choose` takes it
    repeat: int = 1
    ablate: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What a benchmark gave."""

    target: str
    report: Report
    configs: list[dict[str, Any]]  # what each of the report's configurations was
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The documented object; `tasks` and `overall` at its top are the first configuration's."""
        report = self.report
        configs = [
            {
                **config,
                "tasks": {task: report.summary(config["name"], task) for task in report.tasks},
                "overall": report.summary(config["name"]),
            }
            for config in self.configs
        ]
        return {
            "machine": self.machine,
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
                    "difference": asdict(found)
                    if (found := report.differences.get((run.config, run.prompt.id)))
                    else None,
                }
                for run in report.runs
            ],
        }


def prompts_of(path: Path | None, limit: int | None = None) -> list[Prompt]:
    """The prompts of a file, or a few of our own.

    Raises:
        BadPrompts: the file cannot be used; the message names the line.
    """
    from edgellm.runtime.comparison import Prompt, read_prompts

    if path is not None:
        return read_prompts(path, limit)
    return [Prompt(f"{task}/{i}", task, (text,)) for i, (task, text) in enumerate(PROMPTS)][:limit]


def measure(
    asked: Benchmark,
    *,
    watch: Callable[[int], AbstractContextManager[Callable[[Run], None]]],
    listener: Listener = SILENCE,
) -> Measured:
    """Measure plain and speculative decoding in turn over the same prompts.

    Args:
        watch: given the number of runs, what is told of each one.

    Raises:
        BadReference, UnknownModel, NotHere, PullError: as `resolve`.
        DoesNotFit, LoadError, PlanError, AdapterError: as `loading.load`.
    """
    from edgellm.runtime.bringup.load import load_target
    from edgellm.runtime.bringup.planning import plan_here
    from edgellm.runtime.comparison import run

    model, drafts, planned = asked.model, asked.drafts, None
    if asked.plan is not None:
        planned = read_plan(asked.plan)
        refuse_settings_of_a_plan(asked.options)
        model, planned_draft = models_of(planned, model, None)
        drafts = drafts or [f"{planned_draft}+copy" if planned.drafter else "copy"]
    options = with_loras(asked.options, asked.loras, planned)
    first = drafts[0].removesuffix("+copy") if drafts and drafts[0].casefold() not in ("copy", "none") else None
    target, default = resolve_pair(model, first, offline=asked.offline, listener=listener)
    adapter = asked.draft_adapter or (planned.draft_adapter if planned is not None else None)
    chosen = partial(choose, target, asked=adapter, loras=options.loras, listener=listener)
    own = drafts_itself(target, first)
    configurations = _configurations(drafts, default, chosen, own=own, offline=asked.offline, listener=listener)
    options = replace(options, head=own if asked.ablate else any(one.head for one in configurations))
    ablated = chosen(default) if asked.ablate and default is not None else None
    drafters = [ablated] if asked.ablate else [one.draft for one in configurations]
    adapters = {draft.fingerprint: draft.adapter for draft in drafters if draft is not None}
    sizes = [one.draft.path for one in configurations if one.draft is not None]
    largest = max(sizes, key=model_bytes, default=None)
    plan, note = plan_here(target.path, largest, options, planned)
    listener.detail(note)
    plain = load_target(target.path, options, plan)
    engines: dict[str, Engine] = {}
    try:
        engines = _engines(plain, configurations, ablated, ablate=asked.ablate)
        for engine in engines.values():
            for note in engine.notes:
                listener.detail(note)
        with watch(len(engines) * len(asked.prompts) * asked.repeat) as on_run:
            report = run(
                engines,
                asked.prompts,
                max_tokens=asked.max_tokens,
                sampling=asked.sampling,
                repeat=asked.repeat,
                on_run=on_run,
            )
        configs = [_described(name, engines[name], target, adapters, asked) for name in report.configs]
        return Measured(target.name, report, configs, machine(plain.backend))
    finally:
        for engine in engines.values():
            engine.drafter.close()
        plain.close()


def ablation(plain: Engine, draft: ChosenDraft | None) -> dict[str, Engine]:
    """An engine for each row of `ABLATION`, sharing the target. Rows that need a draft model are left out without one,
    and those that translate where the target's own head is the model.

    Raises:
        LoadError: the drafter cannot be loaded.
    """
    engines: dict[str, Engine] = {}
    for name, row in ABLATION.items():
        wants_model, own = row.get("model", True), draft is None and plain.options.head
        if wants_model and (row.get("spelling", "text") != "text" if own else draft is None):
            continue
        changes = {key: value for key, value in row.items() if key != "model"}
        if row["fixed"]:
            changes["n_draft"] = N_ABLATE
        options = replace(plain.options, **changes, head=wants_model and own)
        engines[name] = _drafted(plain, draft if wants_model else None, options, copies=row["copy"])
    return engines


def _drafted(plain: Engine, draft: ChosenDraft | None, options: EngineOptions, *, copies: bool) -> Engine:
    from edgellm.runtime.bringup.load import with_drafter

    options = replace(options, draft_adapter=draft.fingerprint if draft is not None else None)
    return with_drafter(plain, draft.path if draft is not None else None, copy=copies, options=options)


def _engines(
    plain: Engine, configurations: Sequence[Configuration], ablated: ChosenDraft | None, *, ablate: bool
) -> dict[str, Engine]:
    from edgellm.runtime.comparison import PLAIN

    if ablate:
        return {PLAIN: plain, **ablation(plain, ablated)}
    drafted = {
        one.name: _drafted(plain, one.draft, replace(plain.options, head=one.head), copies=one.copies)
        for one in configurations
    }
    return {PLAIN: plain, **drafted}


def _configurations(
    drafts: Sequence[str],
    default: ModelFile | None,
    chosen: Callable[[ModelFile], ChosenDraft],
    *,
    own: bool,
    offline: bool,
    listener: Listener,
) -> list[Configuration]:
    """`own`: the head inside the target's file drafts where nothing is named."""
    if not drafts and own:
        return [Configuration(f"{OWN_HEAD}+copy", None, copies=True, head=True)]
    if not drafts:
        name = f"{default.name}+copy" if default else "copy"
        return [Configuration(name, chosen(default) if default else None, copies=True)]
    found: list[Configuration] = []
    # Without a draft model there is copying to measure: `none` is what is set for a chat.
    for text in [text for text in drafts if text.casefold() != "none"] or ["copy"]:
        name, plus, tail = text.rpartition("+copy")
        reference = text if not plus or tail else name
        if is_own(reference):
            found.append(Configuration(text, None, copies=reference != text, head=True))
        elif reference == "copy":
            found.append(Configuration("copy", None, True))
        else:
            file = resolve(reference, offline=offline, listener=listener)
            copies = reference != text
            found.append(Configuration(file.name + ("+copy" if copies else ""), chosen(file), copies))
    return found


def _described(
    name: str,
    engine: Engine,
    target: ModelFile,
    adapters: Mapping[str | None, DrafterAdapter | None],
    asked: Benchmark,
) -> dict[str, Any]:
    return {
        "name": name,
        "target": target.name,
        "draft": engine.draft_model.path.name if engine.draft_model is not None else None,
        "draft_adapter": adapter_json(adapters.get(engine.options.draft_adapter)),
        "draft_tokens": engine.n_draft,
        "loras": adapters_json(engine.options.loras),
        "exact": engine.options.exact,
        "max_tokens": asked.max_tokens,
        "n_ctx": engine.backend.n_ctx,
        "temperature": asked.sampling.temperature,
        "explained": engine.controller.explain() if engine.controller else "nothing drafts",
    }
