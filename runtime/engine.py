"""Paths in, a ready pair out: the target, its drafter, their vocabularies and templates."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from edgellm.runtime.backends.base import Backend
from edgellm.runtime.backends.llama_cpp import (
    ContextOptions,
    KvType,
    LlamaBackend,
    LlamaModel,
    ModelOptions,
    kernels,
)
from edgellm.runtime.drafters.base import Drafter, NoDrafter
from edgellm.runtime.drafters.chain import ChainDrafter
from edgellm.runtime.drafters.copy import CopyDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.drafters.translating import MAX_OWN_TOKENS, TranslatingDrafter
from edgellm.runtime.exactness import exact_width
from edgellm.runtime.pairing import Match, match
from edgellm.runtime.template import DOCUMENT, ChatTemplate, Message, TemplateError

N_DRAFT = 4  # tokens a round, unless asked otherwise
NEUTRAL = "You are a helpful assistant."  # the system prompt of a drafter whose target has none
N_UBATCH_DRAFT = 64  # a drafter reads little at a time; more only costs memory


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a pair runs. Sizes are in tokens."""

    n_ctx: int = 4096
    n_draft: int = N_DRAFT
    copy: bool = True  # propose what followed the same words before
    exact: bool = False  # prove at load which widths agree bit for bit, and keep to those
    kv: KvType = "f16"
    n_ubatch: int = 128
    n_threads: int | None = None
    n_gpu_layers: int = -1
    main_gpu: int = 0
    mmap: bool = False  # weights are read once; mapped, llama.cpp would keep what it repacks a second time


DEFAULTS = EngineOptions()


@dataclass(slots=True)
class Engine:
    """A loaded target with its drafter. Use it as a context manager, or call `close`."""

    model: LlamaModel
    backend: Backend
    template: ChatTemplate
    drafter: Drafter
    options: EngineOptions
    draft_model: LlamaModel | None = None
    draft_template: ChatTemplate | None = None
    pair: Match | None = None
    notes: list[str] = field(default_factory=list)  # what was chosen and why, a sentence each
    warnings: list[str] = field(default_factory=list)  # what a user must know of it
    stop_asked: threading.Event = field(default_factory=threading.Event)  # set it from anywhere to end an answer
    n_draft: int = N_DRAFT  # after what exactness allows

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def draft_prompt(self, messages: Sequence[Message]) -> list[int] | None:
        """The conversation as the drafter would have it; None where it has no template for it."""
        if self.draft_template is None:
            return None
        own = [Message(message.role, message.content) for message in messages]  # without ids of another vocabulary
        if own[0].role != "system":
            own.insert(0, Message("system", NEUTRAL))  # rather than the persona that its template would write
        try:
            return self.draft_template.render(own)
        except TemplateError:
            return None

    def close(self) -> None:
        """Free both models; safe to call twice."""
        self.drafter.close()
        self.backend.close()
        if self.draft_model is not None:
            self.draft_model.close()
        self.model.close()


def load(target: Path | str, draft: Path | str | None = None, options: EngineOptions = DEFAULTS) -> Engine:
    """Load a target and, if named, a drafter of any vocabulary.

    Raises:
        LoadError: a file that cannot be loaded, with the reason.
        TemplateError: the model's chat template is not valid.
    """
    engine = load_target(Path(target), options)
    try:
        return with_drafter(engine, Path(draft) if draft is not None else None, copy=options.copy)
    except BaseException:
        engine.close()
        raise


def load_target(path: Path, options: EngineOptions = DEFAULTS) -> Engine:
    """A target without a drafter. Raises as `load`."""
    model_options = ModelOptions(
        n_gpu_layers=options.n_gpu_layers,
        main_gpu=options.main_gpu,
        mmap=options.mmap,
        # Our kernels give the same bits at every width; the engine's own do so only in the layout of the file.
        repack=kernels().active or not options.exact,
    )
    model = LlamaModel(path, model_options)
    n_ctx = min(options.n_ctx, model.n_ctx_train or options.n_ctx)
    stop_asked = threading.Event()
    backend = LlamaBackend(
        model,
        ContextOptions(
            n_ctx=n_ctx,
            max_keep=options.n_draft + 1,
            n_ubatch=options.n_ubatch,
            kv=options.kv,
            n_threads=options.n_threads,
            pad_single=options.exact and not kernels().active,
        ),
        stop_asked=stop_asked,
    )
    backend.warm_up()
    template = ChatTemplate(model.chat_template, model.vocabulary)
    engine = Engine(model, backend, template, NoDrafter(), options, stop_asked=stop_asked)
    engine.n_draft = min(options.n_draft, backend.max_keep - 1)
    if model.is_recurrent:
        engine.warnings.append(f"{path.name} keeps a state that cannot take tokens back, so nothing is drafted")
    _note_template(engine.warnings, model, engine.template)
    if n_ctx < options.n_ctx:
        engine.notes.append(f"{path.name} was trained for {n_ctx:,} tokens: the context is that long")
    if options.exact:
        width = exact_width(backend)
        engine.n_draft = min(engine.n_draft, width - 1)
        (engine.notes if width > 1 else engine.warnings).append(
            f"exact: passes of 1 to {width} tokens agree bit for bit here"
            if width > 1
            else "exact: no two pass widths agree bit for bit here, so nothing is drafted"
        )
    return engine


def with_drafter(engine: Engine, draft: Path | None, *, copy: bool) -> Engine:
    """The same target with a drafter model, with copying, with both, or with neither.

    Raises:
        LoadError: the drafter cannot be loaded.
    """
    engine = replace(engine, notes=[*engine.notes])
    drafters: list[Drafter] = [CopyDrafter()] if copy else []
    if draft is not None:
        drafters.append(_load_drafter(engine, draft))
    engine.drafter = ChainDrafter(drafters) if len(drafters) > 1 else drafters[0] if drafters else NoDrafter()
    return engine


def _load_drafter(engine: Engine, path: Path) -> Drafter:
    options, target = engine.options, engine.model
    model = LlamaModel(
        path, ModelOptions(n_gpu_layers=options.n_gpu_layers, main_gpu=options.main_gpu, mmap=options.mmap)
    )
    own_n_ctx = min(engine.backend.n_ctx, model.n_ctx_train or engine.backend.n_ctx)
    backend = LlamaBackend(
        model,
        ContextOptions(
            n_ctx=own_n_ctx,
            n_rollback=engine.n_draft * MAX_OWN_TOKENS,
            n_ubatch=N_UBATCH_DRAFT,
            kv=options.kv,
            n_threads=options.n_threads,
        ),
        stop_asked=engine.stop_asked,
    )
    backend.warm_up()
    engine.draft_model = model
    # A file without a template is a base model: it continues a document better than markers it was never taught.
    engine.draft_template = ChatTemplate(model.chat_template or DOCUMENT, model.vocabulary)
    engine.pair = match(target.vocabulary, model.vocabulary)
    engine.notes.append(f"{path.name} drafts: {engine.pair.reason}")
    if engine.pair.same:
        return ModelDrafter(backend, engine.pair.different)
    return TranslatingDrafter(backend, model.vocabulary, target.vocabulary, engine.template.turn_end)


def _note_template(notes: list[str], model: LlamaModel, template: ChatTemplate) -> None:
    if template.fallback:
        notes.append(f"{model.path.name} carries no chat template: the {template.fallback} format is used")
