"""Paths in, a ready pair out: the target, its drafter, their vocabularies and templates."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from edgellm.memory.context import DRAFT_TOKENS_MOST, ContextSettings
from edgellm.memory.plan import MemoryPlan, PairSettings
from edgellm.memory.solve import N_UBATCH_DRAFT
from edgellm.memory.units import format_bytes
from edgellm.runtime.backends.base import Backend, OutOfMemory
from edgellm.runtime.backends.llama_cpp import LlamaModel, ModelOptions, engine_name, kernels
from edgellm.runtime.bringup.exactness import exact_width
from edgellm.runtime.bringup.loading import Model, needs_padding, open_context, open_model
from edgellm.runtime.bringup.planning import DEFAULTS, EngineOptions, plan_here, plan_next, reserve, trimmed, unplanned
from edgellm.runtime.drafters.base import Drafter, NoDrafter, Proposer
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.failsafe import FailsafeProposer
from edgellm.runtime.drafters.model import REACH, ModelDrafter
from edgellm.runtime.drafters.retokenizers import MapRetokenizer, MergingRetokenizer, Retokenizer, TextRetokenizer
from edgellm.runtime.drafters.translating import TranslatingDrafter
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.learning.pair_state import Learning
from edgellm.runtime.text.full_vocabulary import is_trimmed
from edgellm.runtime.text.template import DOCUMENT, ChatTemplate, Message, TemplateError, usable
from edgellm.runtime.text.vocabulary_map import VocabularyMap, find
from edgellm.runtime.text.vocabulary_match import Match, match

NEUTRAL = "You are a helpful assistant."  # the system prompt of a drafter whose target has none


@dataclass(slots=True)
class Engine:
    """A loaded target with its drafter. Use it as a context manager, or call `close`."""

    model: Model
    backend: Backend
    template: ChatTemplate
    drafter: Drafter
    options: EngineOptions
    settings: PairSettings  # what was allocated
    plan: MemoryPlan | None = None  # None where the planner does not know the model's cache
    draft_model: Model | None = None
    draft_template: ChatTemplate | None = None
    pair: Match | None = None
    table: VocabularyMap | None = None  # stored beside the drafter
    notes: list[str] = field(default_factory=list)  # what was chosen and why, a sentence each
    warnings: list[str] = field(default_factory=list)  # what a user must know of it
    stop_asked: threading.Event = field(default_factory=threading.Event)  # set it from anywhere to end an answer
    n_draft: int = 0  # tokens a round, after what exactness allows
    controller: AdaptiveDrafter | None = None  # the drafter, where there is one
    learning: Learning | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def draft_prompt(self, messages: Sequence[Message], *, think: bool | None = None) -> list[int] | None:
        """The conversation as the drafter would have it; None where it has no template for it.

        Thoughts are left out: another model's are no memory of its own.
        """
        if self.draft_template is None:
            return None
        own = [Message(message.role, message.content) for message in messages]  # without ids of another vocabulary
        if own[0].role != "system":
            own.insert(0, Message("system", NEUTRAL))  # rather than the persona that its template would write
        try:
            return self.draft_template.render(own, think=think)
        except TemplateError:
            return None

    def save(self) -> None:
        """Write down what was learnt, where it is to be kept. A disk that refuses is a warning and no failure."""
        if self.learning is not None:
            self.learning.save()

    def close(self) -> None:
        """Keep what was learnt and free both models; safe to call twice."""
        self.save()
        self.drafter.close()
        self.backend.close()
        if self.draft_model is not None:
            self.draft_model.close()
        self.model.close()


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
            fails all the same, the next rung of the plan's ladder is tried, and `Engine.warnings` says so.

    Raises:
        DoesNotFit: there is not enough memory, found before anything is loaded; the message names what would fit.
        LoadError: a file that cannot be loaded, with the reason.
    """
    target, draft = Path(target), Path(draft) if draft is not None else None
    chosen, note = plan_here(target, draft, options, plan)
    warnings: list[str] = []
    while True:
        try:
            if chosen is not None:
                reserve(chosen)
            engine = load_target(target, options, chosen)
            engine.notes.insert(0, note)
            engine.warnings += warnings
            kept = draft if chosen is None or chosen.settings.drafter else None
            try:
                # A plan without copying has no room for what was learnt either.
                given_up = options.copy and not engine.settings.copy
                options_kept = replace(options, learn="off") if given_up else options
                return with_drafter(engine, kept, copy=engine.settings.copy, options=options_kept)
            except BaseException:
                engine.close()
                raise
        except OutOfMemory as error:
            smaller = plan_next(target, draft, options, chosen) if chosen else None
            if smaller is None:
                raise
            warnings.append(f"{error}; trying a plan of {format_bytes(smaller.process_bytes)} instead")
            chosen = smaller


def load_target(path: Path, options: EngineOptions = DEFAULTS, plan: MemoryPlan | None = None) -> Engine:
    """A target without a drafter, by its plan, or by `options` alone. Raises as `load`."""
    settings = plan.settings if plan else unplanned(options)
    model_options = ModelOptions(
        n_gpu_layers=options.n_gpu_layers,
        main_gpu=options.main_gpu,
        mmap=settings.loading == "mapped",
        # Our kernels give the same bits at every width; the engine's own do so only in the layout of the file.
        repack=kernels().active or not options.exact,
        loras=options.loras,
    )
    model = open_model(path, model_options)
    asked = settings.target.n_ctx
    settings = replace(settings, target=replace(settings.target, n_ctx=min(asked, model.n_ctx_train or asked)))
    stop_asked = threading.Event()
    pad_single = needs_padding(model, exact=options.exact)
    try:
        backend = open_context(model, settings.target, pad_single=pad_single, stop_asked=stop_asked)
    except BaseException:
        model.close()
        raise
    backend.warm_up()
    template, refusal = usable(model.chat_template, model.vocabulary)
    engine = Engine(model, backend, template, NoDrafter(), options, settings, plan, stop_asked=stop_asked)
    engine.n_draft = min(settings.n_draft, backend.max_outputs - 1)
    engine.warnings += plan.lost if plan is not None else ()
    if plan is not None and (trims := trimmed(plan)):
        engine.warnings.append(f"to fit {plan.limit.name}: {', '.join(trims)}")
    if not backend.can_rewind:
        engine.warnings.append(f"{path.name} keeps a state that cannot take tokens back, so nothing is drafted")
    engine.notes += model.notes
    engine.notes += [f"{lora.path.name} is applied, at {lora.scale:g} times its strength" for lora in options.loras]
    _note_template(engine.warnings, model, engine.template, refusal)
    if settings.target.n_ctx < asked:
        engine.notes.append(f"{path.name} was trained for {model.n_ctx_train:,} tokens: the context is that long")
    if options.exact:
        width = exact_width(backend)
        engine.n_draft = min(engine.n_draft, width - 1)
        (engine.notes if width > 1 else engine.warnings).append(
            f"exact: passes of 1 to {width} tokens agree bit for bit here"
            if width > 1
            else "exact: no two pass widths agree bit for bit here, so nothing is drafted"
        )
    return engine


def with_drafter(engine: Engine, draft: Path | None, *, copy: bool, options: EngineOptions | None = None) -> Engine:
    """The same target with a drafter model, with copying, with both, or with neither.

    `options`: of drafting, where they differ from the target's.

    Raises:
        LoadError: the drafter cannot be loaded.
    """
    engine = replace(engine, notes=[*engine.notes], warnings=[*engine.warnings], options=options or engine.options)
    options = engine.options
    engine.n_draft = min(engine.n_draft, options.n_draft)
    learning = Learning(engine, draft)
    model = None
    if draft is not None:
        model = FailsafeProposer(_load_drafter(engine, draft, learning), engine.warnings.append)
    store = learning.store if options.learn != "off" and (copy or options.learned is not None) else None
    if model is None and not copy and store is None:
        engine.drafter = NoDrafter()
        return engine
    engine.drafter = engine.controller = drafter = AdaptiveDrafter(
        engine.backend,
        learning.costs(model) if not options.fixed else None,
        model=model,
        conversation=NgramIndex(engine.backend.n_ctx + 1) if copy else None,
        store=store.index if store is not None else None,
        fixed=options.n_draft if options.fixed else None,
        stop=options.stop,
        passes_per_token=1.0 if engine.pair is not None and engine.pair.same else None,
    )
    learning.attach(drafter)
    engine.learning = learning
    return engine


def _load_drafter(engine: Engine, path: Path, learning: Learning) -> Proposer:
    options, target = engine.options, engine.model
    model = open_model(
        path,
        ModelOptions(
            n_gpu_layers=options.n_gpu_layers, main_gpu=options.main_gpu, mmap=engine.settings.loading == "mapped"
        ),
    )
    try:
        # What is drafted may hang on the last bits; what is answered does not.
        settings = _drafter_settings(engine, model)
        backend = open_context(model, settings, pad_single=False, stop_asked=engine.stop_asked)
    except BaseException:
        model.close()
        raise
    backend.warm_up()
    engine.draft_model = model
    # A file without a template is a base model: it continues a document better than markers it was never taught.
    engine.draft_template, refusal = usable(model.chat_template, model.vocabulary, DOCUMENT)
    _note_template(engine.warnings, model, engine.draft_template, refusal)
    if isinstance(model, LlamaModel):
        _note_words(engine.notes, model)
        if isinstance(target, LlamaModel):
            engine.table, note = find(
                path.parent,
                target_key=target.vocabulary_key(),
                draft_key=model.vocabulary_key(),
                engine=engine_name(),
            )
            engine.notes += [note] if note else []
    engine.pair = engine.table.match if engine.table else match(target.vocabulary, model.vocabulary)
    engine.notes.append(f"{path.name} drafts: {engine.pair.reason}")
    if engine.pair.same:
        return ModelDrafter(backend, engine.pair.different, REACH)
    own, theirs, cache = model.vocabulary, target.vocabulary, learning.ngrams(model.vocabulary)
    retokenizer: Retokenizer
    if options.spelling == "merged":
        retokenizer = MergingRetokenizer(own, theirs, cache)
    elif options.spelling == "text":
        retokenizer = TextRetokenizer(own, theirs)
    else:
        retokenizer = MapRetokenizer(own, theirs, cache if options.spelling == "omnidraft" else None)
        if options.warm_start and not cache.n_learnt:
            table = engine.table or VocabularyMap.build(theirs, own, target_key="", draft_key="", engine=engine_name())
            cache.seed(table.spellings())  # by the target's ids: those of byte-pair merges begin with the commonest
    return TranslatingDrafter(
        backend,
        own,
        theirs,
        engine.template.turn_end,
        retokenizer=retokenizer,
        cache=cache,
        shared_only=options.spelling == "tli",
        reach=REACH,
        merged_probs=options.merged_probs,
    )


def _note_words(notes: list[str], model: LlamaModel) -> None:
    name = model.path.name
    if model.words is not None:
        n_kept = len(model.words.kept)
        notes.append(f"{name} reads all of {model.words.header.path.name} and writes {n_kept:,} tokens of it")
    elif is_trimmed(model.header):
        notes.append(f"{name} has no file of words beside it, so it reads with the tokens that it kept")


def _drafter_settings(engine: Engine, model: Model) -> ContextSettings:
    """What the plan says, within what the drafter was trained for; for one that was not planned, the target's."""
    main = engine.settings.target
    own = engine.settings.drafter or replace(main, n_ubatch=N_UBATCH_DRAFT)
    n_rs_seq = engine.n_draft * DRAFT_TOKENS_MOST if model.is_hybrid else 0
    return replace(own, n_ctx=min(own.n_ctx, model.n_ctx_train or own.n_ctx), n_outputs=1, n_rs_seq=n_rs_seq)


def _note_template(notes: list[str], model: Model, template: ChatTemplate, refusal: str) -> None:
    name = template.fallback or "plain document"
    if refusal:
        notes.append(f"{model.path.name}: {refusal}; the {name} format is used instead")
    elif template.fallback:
        notes.append(f"{model.path.name} carries no chat template: the {name} format is used")
