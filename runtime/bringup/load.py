"""Paths in, a ready pair out: the target, its drafter, their vocabularies and templates, each built whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgellm.memory.context import DRAFT_TOKENS_MOST, ContextSettings
from edgellm.memory.draft_heads import why_none
from edgellm.memory.limits import N_UBATCH_DRAFT
from edgellm.memory.placement import PROCESSOR
from edgellm.memory.plan import MemoryPlan, PairSettings
from edgellm.memory.units import format_bytes
from edgellm.runtime.backends.base import Backend, LoadError, OutOfMemory, StopSwitch
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.backends.llama_process import engine_name, kernels
from edgellm.runtime.bringup.loading import Model, needs_padding, open_context, open_model, template_of
from edgellm.runtime.bringup.planning import DEFAULTS, EngineOptions, plan_here, plan_next, reserve, unplanned
from edgellm.runtime.bringup.remarks import about_target, about_template, about_vocabulary, agreeing_draft
from edgellm.runtime.drafters.ahead import AheadProposer
from edgellm.runtime.drafters.base import NoDrafter, Proposer
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.factory import Pair, build_proposer
from edgellm.runtime.drafters.failsafe import FailsafeProposer
from edgellm.runtime.engine import Engine
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.learning.pair_state import PairState
from edgellm.runtime.text.template import DOCUMENT, ChatTemplate
from edgellm.runtime.text.vocabulary_map import VocabularyMap, find
from edgellm.runtime.text.vocabulary_match import Match, match


def load(
    target: Path | str,
    draft: Path | str | None = None,
    options: EngineOptions = DEFAULTS,
    *,
    plan: MemoryPlan | None = None,
) -> Engine:
    """Load a target and, if named, a drafter of any vocabulary, and allocate what the plan says.

    Args:
        plan: None for one within `options.budget_bytes`, or within what this machine has free. Where an allocation
            fails all the same, the next smaller plan is tried, and `Engine.warnings` says so.

    Raises:
        DoesNotFit: there is not enough memory, found before anything is loaded; the message names what would fit.
        LoadError: a file that cannot be loaded, with the reason.
    """
    target, draft = Path(target), Path(draft) if draft is not None else None
    chosen, note = plan_here(target, draft, options, plan)
    warnings: list[str] = []
    while True:
        try:
            return _load_planned(target, draft, options, chosen, note, warnings)
        except OutOfMemory as error:
            smaller = plan_next(target, draft, options, chosen) if chosen else None
            if smaller is None:
                raise
            warnings.append(f"{error}; trying a plan of {format_bytes(smaller.process_bytes)} instead")
            chosen = smaller


def _load_planned(
    target: Path, draft: Path | None, options: EngineOptions, plan: MemoryPlan | None, note: str, warnings: list[str]
) -> Engine:
    if plan is not None:
        reserve(plan)
        draft = draft if plan.settings.drafter else None
        options = replace(options, head=options.head and plan.settings.drafter is not None)
    engine = load_target(target, options, plan)
    try:
        engine = replace(engine, notes=[note, *engine.notes], warnings=[*engine.warnings, *warnings])
        # A plan without copying has no room for what was learnt either.
        given_up = options.copy and not engine.settings.copy
        drafting = replace(options, learn="off") if given_up else options
        return with_drafter(engine, draft, copy=engine.settings.copy, options=drafting)
    except BaseException:
        engine.close()
        raise


def load_target(path: Path, options: EngineOptions = DEFAULTS, plan: MemoryPlan | None = None) -> Engine:
    """A target without a drafter, by its plan, or by `options` alone. Raises as `load`."""
    settings = plan.settings if plan else unplanned(options)
    stop_switch = StopSwitch()
    model = open_model(path, target_options(options, settings))
    if isinstance(model, LlamaModel) and model.is_head:
        model.close()
        raise LoadError(
            f"{path.name} is a draft head, which drafts for its model alone: name that, and this as --draft"
        )
    n_asked = settings.target.n_ctx
    settings = replace(settings, target=replace(settings.target, n_ctx=min(n_asked, model.n_ctx_train or n_asked)))
    try:
        pad_single = needs_padding(model, exact=options.exact)
        backend = open_context(model, settings.target, pad_single=pad_single, stop_asked=stop_switch)
    except BaseException:
        model.close()
        raise
    backend.warm_up()
    template, refusal = template_of(model)
    n_draft = min(settings.n_draft, backend.max_outputs - 1)
    notes, warnings = about_target(model, template, refusal, plan, options)
    if settings.target.n_ctx < n_asked:
        notes.append(f"{path.name} was trained for {model.n_ctx_train:,} tokens: the context is that long")
    if options.exact or (isinstance(model, LlamaModel) and model.options.placed):
        n_draft = min(n_draft, agreeing_draft(backend, options.exact, notes, warnings))
    return Engine(
        model,
        backend,
        template,
        options,
        settings,
        plan=plan,
        n_draft=n_draft,
        stop_switch=stop_switch,
        notes=notes,
        warnings=warnings,
    )


def with_drafter(engine: Engine, draft: Path | None, *, copy: bool, options: EngineOptions | None = None) -> Engine:
    """The same target with a drafter model, with copying, with both, or with neither.

    `options`: of drafting, where they differ from the target's.

    Raises:
        LoadError: the drafter cannot be loaded.
    """
    options = options or engine.options
    notes, warnings = [*engine.notes], [*engine.warnings]
    state = PairState(engine.model, engine.backend, draft, options, warnings.append)
    if draft is not None:
        loaded: LoadedDraft | None = open_draft(engine, draft, options, notes, warnings)
    else:
        loaded = own_head(engine, options, notes) if options.head else None
    pair = replace(
        engine,
        options=options,
        n_draft=min(engine.n_draft, options.n_draft),
        draft_model=loaded.model if loaded and loaded.model is not engine.model else None,
        draft_template=loaded.template if loaded else None,
        pair=loaded.match if loaded else None,
        table=loaded.table if loaded else None,
        notes=notes,
        warnings=warnings,
    )
    model = proposer_of(engine, loaded, options, state, warnings) if loaded else None
    store = state.store if options.learn != "off" and (copy or options.learned is not None) else None
    if model is None and not copy and store is None:
        return replace(pair, drafter=NoDrafter(), pair_state=None)
    drafter = AdaptiveDrafter(
        engine.backend,
        state.costs(model) if not options.fixed else None,
        model=model,
        conversation=NgramIndex(engine.backend.n_ctx + 1) if copy else None,
        store=store.index if store is not None else None,
        fixed=options.n_draft if options.fixed else None,
        stop=options.stop,
        passes_per_token=1.0 if loaded is not None and loaded.match.same else None,
    )
    state.attach(drafter)
    return replace(pair, drafter=drafter, pair_state=state)


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A draft model that is loaded, and what its vocabulary shares with the target's."""

    model: Model
    backend: Backend
    template: ChatTemplate | None  # None for a head, which is given the target's own text
    match: Match
    table: VocabularyMap | None


def own_head(engine: Engine, options: EngineOptions, notes: list[str]) -> LoadedDraft:
    """The draft head inside the target's file, with which it was loaded.

    Raises:
        LoadError: it has none that drafts.
    """
    model, backend = engine.model, engine.backend
    if not isinstance(model, LlamaModel) or not isinstance(backend, LlamaBackend):
        raise LoadError(f"{model.path.name} has no draft head inside: name a small model as the drafter, or none")
    if (why := why_none(model.header)) is not None:
        raise LoadError(why)
    notes.append(f"{model.path.name} drafts with the head that is inside it (MTP)")
    return _head_of(engine, model, backend, options)


def _head_of(engine: Engine, model: LlamaModel, target: LlamaBackend, options: EngineOptions) -> LoadedDraft:
    head = target.with_head(model, draft_settings(engine, model, min(engine.n_draft, options.n_draft)))
    head.warm_up()
    return LoadedDraft(model, head, None, Match(True, "the head has the target's vocabulary"), None)


def open_draft(
    engine: Engine,
    path: Path,
    options: EngineOptions,
    notes: list[str],
    warnings: list[str],
    *,
    known: Match | None = None,
) -> LoadedDraft:
    """The drafter of a file, for the engine's target.

    Args:
        known: what the two vocabularies share, where that is known; then `engine.table` goes with it.

    Raises:
        LoadError: it cannot be loaded.
    """
    model = open_model(path, draft_options(options, engine.settings))
    try:
        if isinstance(model, LlamaModel) and model.has_encoder and not engine.template.reads_last:
            raise LoadError(f"{path.name} has an encoder: it drafts for models that have one too, and not for this")
        if isinstance(model, LlamaModel) and model.is_head:
            if not isinstance(engine.backend, LlamaBackend):
                raise LoadError(f"{path.name} is a draft head and {engine.model.path.name} hands out no states to it")
            notes.append(f"{path.name} drafts: it is a head, which reads the target's own states")
            return _head_of(engine, model, engine.backend, options)
        # The drafter need not be bit-exact; the target must.
        settings = draft_settings(engine, model, min(engine.n_draft, options.n_draft))
        backend = open_context(model, settings, pad_single=False, stop_asked=engine.stop_switch)
    except BaseException:
        model.close()
        raise
    backend.warm_up()
    return draft_of(engine, path, model, backend, notes, warnings, known=known)


def draft_of(
    engine: Engine,
    path: Path,
    model: Model,
    backend: Backend,
    notes: list[str],
    warnings: list[str],
    *,
    known: Match | None = None,
) -> LoadedDraft:
    """The drafter of a model that is open. Arguments as of `open_draft`."""
    target = engine.model
    # A file without a template is a base model: it continues a document better than markers it was never taught.
    template, refusal = template_of(model, DOCUMENT)
    warnings += about_template(model, template, refusal)
    if known is not None:
        return LoadedDraft(model, backend, template, known, engine.table)
    table = None
    if isinstance(model, LlamaModel):
        notes += about_vocabulary(model)
        if isinstance(target, LlamaModel):
            keys = {"target_key": target.vocabulary_key(), "draft_key": model.vocabulary_key()}
            table, note = find(path.parent, **keys, engine=engine_name())
            notes += [note] if note else []
    shared = table.match if table else match(target.vocabulary, model.vocabulary)
    notes.append(f"{path.name} drafts: {shared.reason}")
    return LoadedDraft(model, backend, template, shared, table)


def proposer_of(
    engine: Engine,
    draft: LoadedDraft,
    options: EngineOptions,
    state: PairState,
    warnings: list[str],
    *,
    goes_ahead: bool = True,
) -> Proposer:
    """What drafts with it; `warnings` is told once where it fails.

    Args:
        goes_ahead: while the target verifies, where the two lie apart.
    """
    pair = Pair(
        engine.model.vocabulary,
        engine.backend,
        engine.template.turn_end,
        draft.model.vocabulary,
        draft.backend,
        draft.match,
        draft.table,
        options,
        ngrams=lambda: state.ngrams(draft.model.vocabulary),
    )
    proposer = FailsafeProposer(build_proposer(pair), warnings.append)
    return AheadProposer(proposer) if goes_ahead and options.ahead and are_apart(engine.backend, draft) else proposer


def are_apart(target: Backend, draft: LoadedDraft) -> bool:
    """Whether both may compute at once: the target on accelerators alone, the drafter on another device."""
    if not isinstance(target, LlamaBackend) or not isinstance(draft.backend, LlamaBackend):
        return False
    there, apart = ({name for name, _ in each.model.options.placed} for each in (target, draft.backend))
    return not target.model.n_layers_here and not there & apart


def target_options(options: EngineOptions, settings: PairSettings) -> ModelOptions:
    """How a target's weights are loaded."""
    # Our kernels give the same bits at every width; the engine's own do so only in the layout of the file.
    repack = kernels().active or not options.exact
    own = _model_options(options, settings, settings.target)
    return replace(own, repack=repack, loras=options.loras, head=options.head)


def draft_options(options: EngineOptions, settings: PairSettings) -> ModelOptions:
    """How a drafter's weights are loaded, which needs no exact bits."""
    return _model_options(options, settings, settings.drafter or replace(settings.target, placed=()))


def _model_options(options: EngineOptions, settings: PairSettings, context: ContextSettings) -> ModelOptions:
    return ModelOptions(
        context.placed,
        head_stays=context.head_stays,
        mmap=settings.loading == "mapped",
        processor_only=options.main_device == PROCESSOR,
    )


def draft_settings(engine: Engine, model: Model, n_draft: int) -> ContextSettings:
    """What the plan says, within what the drafter was trained for; for one that was not planned, the target's."""
    main = engine.settings.target
    own = engine.settings.drafter or replace(main, n_ubatch=N_UBATCH_DRAFT)
    n_rs_seq = n_draft * DRAFT_TOKENS_MOST if model.is_hybrid else 0
    return replace(own, n_ctx=min(own.n_ctx, model.n_ctx_train or own.n_ctx), n_outputs=1, n_rs_seq=n_rs_seq)
