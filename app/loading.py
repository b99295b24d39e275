"""From names to a ready pair: references, a plan, adapters and defaults, and then the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.app.adapters import loras as read_loras
from edgellm.app.defaults import NO_ADAPTER, BadSetting, drafting_options
from edgellm.app.drafter_adapters import ChosenDraft, DrafterAdapter, choose
from edgellm.app.listener import LOG, SILENCE, Listener
from edgellm.app.own_heads import drafts_itself, is_own
from edgellm.app.plans import models_of, read_plan
from edgellm.app.references import resolve_pair
from edgellm.memory.placement import PROCESSOR

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.adapter import Lora
    from edgellm.memory.plan import MemoryPlan
    from edgellm.runtime.bringup.planning import EngineOptions
    from edgellm.runtime.engine import Engine
    from edgellm.runtime.parallel.engine import ParallelEngine


@dataclass(frozen=True, slots=True)
class Pair:
    """A target and its drafter that are here, and how they are to run."""

    target: ModelFile
    draft: ModelFile | None
    options: EngineOptions
    plan: MemoryPlan | None = None
    chosen: ChosenDraft | None = None  # the drafter's file, with its adapter
    asked_adapter: str | None = None  # what was asked for of it: a file, or "none"

    @property
    def adapter(self) -> DrafterAdapter | None:
        """What the drafter learnt of the target."""
        return self.chosen.adapter if self.chosen is not None else None

    @property
    def draft_path(self) -> Path | None:
        if self.chosen is not None:
            return self.chosen.path
        return self.draft.path if self.draft is not None else None

    def open(self, listener: Listener = SILENCE) -> Engine:
        """Load both; what was chosen is told as details, what was lost as warnings. Raises as `bringup.load`."""
        from edgellm.runtime.backends.llama_process import kernels
        from edgellm.runtime.bringup.load import load as load_files

        if self.options.exact and not (kernels().active and self.options.main_device == "cpu"):
            listener.note(
                "--exact compares passes of every width first, which can take a minute on the engine's own kernels"
            )
        with listener.working(f"loading {self.target.name} …"):
            engine = load_files(self.target.path, self.draft_path, self.options, plan=self.plan)
        try:
            _tell(engine, listener)
        except BaseException:  # nobody else has it yet
            engine.close()
            raise
        return engine

    def reopen(self, listener: Listener = SILENCE, *, processor: bool = False) -> Engine:
        """Load both anew after a worker or a device was lost, on the workers that still answer. Raises as `open`.

        Args:
            processor: a device of this machine failed, which this process cannot use again.
        """
        from edgellm.runtime.backends.base import LoadError
        from edgellm.runtime.backends.llama_process import accelerators
        from edgellm.runtime.workers.survey import WorkerError

        left = []
        for address in self.options.workers:
            try:
                accelerators((address,))
            except (WorkerError, LoadError) as error:
                listener.warning(f"{error}; going on without it")
            else:
                left.append(address)
        options = replace(self.options, workers=tuple(left))
        if processor:
            options = replace(options, main_device=PROCESSOR, draft_device=PROCESSOR)
        # A plan places layers where they can no longer lie.
        kept = self.plan if options == self.options else None
        return replace(self, options=options, plan=kept).open(listener)

    def open_parallel(self, listener: Listener = SILENCE) -> ParallelEngine:
        """Load both for `options.n_parallel` conversations at once. Raises as `parallel.load`."""
        from edgellm.runtime.parallel.load import load_parallel

        with listener.working(f"loading {self.target.name} …"):
            engine = load_parallel(
                self.target.path, self.draft_path, self.options, plan=self.plan, warn=listener.warning
            )
        try:
            _tell(engine.first, listener)
        except BaseException:
            engine.close()
            raise
        return engine


def _tell(engine: Engine, listener: Listener) -> None:
    for note in engine.notes:
        listener.detail(note)
    for warning in engine.warnings:
        listener.warning(warning)


def load(
    model: Path | str | None = None,
    draft: Path | str | None = None,
    options: EngineOptions | None = None,
    *,
    plan: MemoryPlan | Path | str | None = None,
    loras: Sequence[Lora | str] = (),
    draft_adapter: Path | str | None = None,
    offline: bool = False,
    listener: Listener = LOG,
) -> Engine:
    """Load a target and a small model that drafts for it, fetched first where they are not here.

    Use the engine as a context manager, or close it.

    Args:
        model: a name of the catalogue, user/repo[:QUANT] of the Hub, or a file; None for the default model.
        draft: likewise; "none" for no drafter, "mtp" for the head inside the model's file; None for that head where it
            has one, else for the drafter that the catalogue recommends, done without where it cannot be had.
        options: None for what `edgellm chat` takes: lengths that pay, and what was learnt before, which is kept.
        plan: as `edgellm plan --save` writes it, or its file.
        loras: adapters of the target, or FILE[:SCALE] texts.
        draft_adapter: what the drafter learnt of the target: a file that `edgellm adapt` wrote, or "none"; None for
            what was learnt here, or else what the catalogue has for the two.
        offline: ask no server.
        listener: who is told of downloads, choices and warnings; the logger "edgellm" if not given.

    Raises:
        BadReference, UnknownModel: the reference stands for nothing, or for several things.
        NotHere, PullError: it could not be fetched.
        DoesNotFit: there is not enough memory, found before anything is loaded; the message names what would fit.
        LoadError: a file that cannot be loaded, with the reason.
        AdapterError, DraftAdapterError, PlanError: an adapter or a plan that cannot be used.
    """
    pair = prepare(
        model,
        draft,
        options,
        plan=plan,
        loras=loras,
        draft_adapter=draft_adapter,
        offline=offline,
        listener=listener,
    )
    return pair.open(listener)


def prepare(
    model: Path | str | None,
    draft: Path | str | None,
    options: EngineOptions | None = None,
    *,
    plan: MemoryPlan | Path | str | None = None,
    loras: Sequence[Lora | str] = (),
    draft_adapter: Path | str | None = None,
    offline: bool = False,
    listener: Listener = SILENCE,
) -> Pair:
    """The files and settings of a pair; what is not here is fetched. Arguments and failures are those of `load`."""
    from edgellm.runtime.bringup.planning import EngineOptions

    if options is None:
        options = EngineOptions(**drafting_options())
    model, draft = _reference(model), _reference(draft)
    planned = read_plan(Path(plan)) if isinstance(plan, str | Path) else plan
    if planned is not None:
        refuse_settings_of_a_plan(options)
        placed = [name for name, _ in planned.settings.target.placed if planned.settings.target.head_stays]
        options = replace(options, workers=options.workers or tuple(placed))
        model, draft = models_of(planned, model, draft)
    options = with_loras(options, loras, planned)
    n_parallel = options.n_parallel
    target, drafter = resolve_pair(model, draft, offline=offline, n_parallel=n_parallel, listener=listener)
    options = replace(options, head=drafter is None and drafts_itself(target, draft, n_parallel=n_parallel))
    if is_own(draft) and not options.head:
        listener.warning(f"{target.name}'s draft head is left out: it drafts for one conversation at a time")
    asked = _reference(draft_adapter) or (planned.draft_adapter if planned is not None else None)
    if drafter is None:
        if asked is not None and asked.casefold() != NO_ADAPTER:
            listener.warning("nothing drafts, so the adapter of a drafter has no effect")
        return Pair(target, None, options, planned)
    chosen = choose(target, drafter, asked, loras=options.loras, listener=listener)
    return Pair(target, drafter, replace(options, draft_adapter=chosen.fingerprint), planned, chosen, asked)


def with_loras(options: EngineOptions, loras: Sequence[Lora | str], plan: MemoryPlan | None) -> EngineOptions:
    """The options with the adapters that are named, or else with the plan's.

    Raises:
        AdapterError: one of them is not there.
    """
    named: Sequence[Lora | str] = loras or options.loras or (plan.loras if plan is not None else ())
    texts = [one for one in named if isinstance(one, str)]
    read = iter(read_loras(texts))
    return replace(options, loras=tuple(next(read) if isinstance(one, str) else one for one in named))


def refuse_settings_of_a_plan(options: EngineOptions) -> None:
    """Raises BadSetting: an option is given that a plan decides."""
    given = {"ctx": options.n_ctx, "kv": options.kv, "draft-tokens": options.n_draft if options.fixed else None}
    for name, value in given.items():
        if value is not None:
            raise BadSetting(f"the plan decides --{name}: leave it out, or leave out --plan")


def _reference(given: Path | str | None) -> str | None:
    return None if given is None else str(given)
