"""Paths in, a ready pair out: the target, its drafter, their vocabularies and templates."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edgellm.runtime.backends.base import Backend
from edgellm.runtime.backends.llama_cpp import ContextOptions, KvType, LlamaBackend, LlamaModel, ModelOptions
from edgellm.runtime.drafters.base import Drafter, NoDrafter
from edgellm.runtime.drafters.chain import ChainDrafter
from edgellm.runtime.drafters.copy import CopyDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.drafters.translating import TranslatingDrafter
from edgellm.runtime.exactness import exact_width
from edgellm.runtime.pairing import Match, match
from edgellm.runtime.template import ChatTemplate

N_DRAFT = 4  # tokens a round, unless asked otherwise
N_UBATCH_DRAFT = 64  # a drafter reads little at a time; more only costs memory


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a pair runs. Sizes are in tokens."""

    n_ctx: int = 4096
    n_draft: int = N_DRAFT
    copy: bool = True  # propose what followed the same words before
    exact: bool = False  # only batch shapes that agree bit for bit
    kv: KvType = "f16"
    n_ubatch: int = 128
    n_threads: int | None = None
    n_gpu_layers: int = -1
    main_gpu: int = 0
    mmap: bool = True


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
    model_options = ModelOptions(
        n_gpu_layers=options.n_gpu_layers, main_gpu=options.main_gpu, mmap=options.mmap, repack=not options.exact
    )
    model = LlamaModel(Path(target), model_options)
    n_ctx = min(options.n_ctx, model.n_ctx_train) if model.n_ctx_train else options.n_ctx
    stop_asked = threading.Event()
    backend = LlamaBackend(
        model,
        ContextOptions(
            n_ctx=n_ctx,
            max_keep=options.n_draft + 1,
            n_ubatch=options.n_ubatch,
            kv=options.kv,
            n_threads=options.n_threads,
            pad_single=options.exact,
        ),
        stop_asked=stop_asked,
    )
    backend.warm_up()
    template = ChatTemplate(model.chat_template, model.vocabulary)
    engine = Engine(model, backend, template, NoDrafter(), options, stop_asked=stop_asked)
    engine.n_draft = options.n_draft
    _note_template(engine.warnings, model, engine.template)
    if n_ctx < options.n_ctx:
        engine.notes.append(f"{model.path.name} was trained for {n_ctx:,} tokens: the context is that long")
    if options.exact:
        width = exact_width(backend)
        engine.n_draft = min(options.n_draft, width - 1)
        (engine.notes if width > 2 else engine.warnings).append(
            f"exact: passes of 2 to {width} tokens agree bit for bit here"
            if width > 2
            else "exact: no two batch sizes agree bit for bit here, so nothing is drafted"
        )
    drafters: list[Drafter] = [CopyDrafter()] if options.copy else []
    if draft is not None:
        drafters.append(_load_drafter(engine, Path(draft), n_ctx))
    engine.drafter = one_of(drafters)
    return engine


def one_of(drafters: Sequence[Drafter]) -> Drafter:
    """None, the one, or a chain."""
    return ChainDrafter(drafters) if len(drafters) > 1 else drafters[0] if drafters else NoDrafter()


def _load_drafter(engine: Engine, path: Path, n_ctx: int) -> Drafter:
    options, target = engine.options, engine.model
    model = LlamaModel(
        path, ModelOptions(n_gpu_layers=options.n_gpu_layers, main_gpu=options.main_gpu, mmap=options.mmap)
    )
    own_n_ctx = min(n_ctx, model.n_ctx_train) if model.n_ctx_train else n_ctx
    backend = LlamaBackend(
        model,
        ContextOptions(n_ctx=own_n_ctx, n_ubatch=N_UBATCH_DRAFT, kv=options.kv, n_threads=options.n_threads),
        stop_asked=engine.stop_asked,
    )
    backend.warm_up()
    engine.draft_model = model
    engine.draft_template = ChatTemplate(model.chat_template, model.vocabulary)
    _note_template(engine.notes, model, engine.draft_template)
    engine.pair = match(target.vocabulary, model.vocabulary)
    engine.notes.append(f"{path.name} drafts: {engine.pair.reason}")
    if engine.pair.same:
        return ModelDrafter(backend, engine.pair.different)
    return TranslatingDrafter(backend, model.vocabulary, target.vocabulary, engine.template.turn_end)


def _note_template(notes: list[str], model: LlamaModel, template: ChatTemplate) -> None:
    if template.fallback:
        notes.append(f"{model.path.name} carries no chat template: the {template.fallback} format is used")
