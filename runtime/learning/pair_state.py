"""What drafting knows of one target and its drafter: loaded when they are, written back when asked."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from edgellm.memory.adapter import fingerprint
from edgellm.memory.cpu import cpu_name
from edgellm.runtime.backends.llama_cpp import LlamaBackend, kernels
from edgellm.runtime.learning import costs as curves
from edgellm.runtime.learning import persistence
from edgellm.runtime.learning.costs import CostCurve, Costs
from edgellm.runtime.learning.files import SealedFile
from edgellm.runtime.learning.persistence import SavedNgrams, SavedStore

if TYPE_CHECKING:
    from pathlib import Path

    from edgellm.runtime.backends.base import Backend
    from edgellm.runtime.drafters.base import Proposer
    from edgellm.runtime.drafters.controller import AdaptiveDrafter
    from edgellm.runtime.engine import Engine
    from edgellm.runtime.learning.ngrams import NgramCache
    from edgellm.runtime.text.vocabulary import Vocabulary

SAVE_EVERY_S = 30.0  # at most, while answers come


class Learning:
    """The store, the n-gram cache, the acceptance heads and the cost curves of a pair."""

    def __init__(self, engine: Engine, draft: Path | None) -> None:
        self._engine, self._folder = engine, engine.options.learned
        self._keeps = engine.options.learn == "kept" and self._folder is not None
        self._warn = engine.warnings.append
        self._draft = draft
        self._ngrams: SavedNgrams | None = None
        self._drafter: AdaptiveDrafter | None = None
        self._curves: list[tuple[SealedFile, CostCurve]] = []
        # An adapted model says other things, and takes other drafts.
        adapters = f" {fingerprint(engine.options.loras)}" if engine.options.loras else ""
        own = f"{engine.model.path.name} {engine.model.vocabulary.fingerprint()}{adapters}" if self._keeps else ""
        self._target_key = own
        self._store: SavedStore | None = None
        self._saved_s = time.monotonic()

    def _file(self, kind: str, key: str) -> SealedFile | None:
        if self._folder is None or (kind != "costs" and not self._keeps):
            return None
        return persistence.sealed(self._folder, kind, key, self._warn)

    @property
    def store(self) -> SavedStore:
        """Earlier answers of this target."""
        if self._store is None:
            self._store = SavedStore(self._file("store", self._target_key), self._engine.model.vocabulary.n_tokens)
        return self._store

    def ngrams(self, own: Vocabulary) -> NgramCache:
        """How the drafter's vocabulary spells the target's."""
        theirs = self._engine.model.vocabulary
        if self._ngrams is None:
            key = f"{own.fingerprint()} {theirs.fingerprint()}" if self._keeps else ""
            self._ngrams = SavedNgrams(self._file("ngrams", key), own.n_tokens, theirs.n_tokens)
        return self._ngrams.cache

    def costs(self, model: Proposer | None) -> Costs:
        """Curves of both models, measured now if they never were on this machine."""
        engine = self._engine
        target = self._curve(engine.backend, curves.WIDTHS)
        if engine.options.assume_cost is not None:
            target = curves.assumed(target(1), engine.options.assume_cost)
        backend = model.backend if model is not None else None
        return Costs(target, self._curve(backend, curves.DRAFT_WIDTHS) if backend is not None else None)

    def _curve(self, backend: Backend, widths: tuple[int, ...]) -> CostCurve:
        file = self._file("costs", cost_key(backend)) if isinstance(backend, LlamaBackend) else None
        data = persistence.read_json(file)
        curve = None
        if data is not None:
            try:
                curve = CostCurve.from_json(data)
            except (ValueError, KeyError, TypeError):
                assert file is not None
                file.set_aside("holds no cost curve")
        wanted = set(curves.measurable(backend, widths))
        if curve is None or not wanted <= set(curve.widths):
            curve = curves.measure(backend, widths, repeats=curves.N_REPEATS if file is not None else 1)
            if file is not None and wanted <= set(curve.widths):  # what a busy machine left out is measured next time
                self._write(file, curve.to_json())
        if file is not None:
            self._curves.append((file, curve))
        return curve

    def attach(self, drafter: AdaptiveDrafter) -> None:
        """Let a drafter begin with what is known of its pair."""
        self._drafter = drafter
        file = self._knowledge_file()
        data = persistence.read_json(file)
        if data is not None:
            try:
                drafter.restore(data)
            except (ValueError, KeyError, TypeError, AttributeError):
                assert file is not None
                file.set_aside("holds no knowledge of a pair")

    def _knowledge_file(self) -> SealedFile | None:
        draft = f"{self._draft.name} {self._draft.stat().st_size}" if self._draft is not None else "no model"
        return self._file("knowledge", f"{self._target_key} {draft}")

    def save(self) -> None:
        """Write everything that is new; what cannot be written is told once and lost."""
        if self._folder is None:
            return
        for part in (self._store, self._ngrams):
            if part is not None:
                self._try(part.save)
        if self._drafter is not None and self._drafter.choices.n_rounds and (file := self._knowledge_file()):
            self._write(file, self._drafter.to_json())
        for file, curve in self._curves:
            if curve.has_drifted and len(curve.widths) > 2:
                self._write(file, curve.to_json())
        self._saved_s = time.monotonic()

    def save_now_and_then(self) -> None:
        """`save`, unless that was done a moment ago."""
        if time.monotonic() - self._saved_s > SAVE_EVERY_S:
            self.save()

    def _write(self, file: SealedFile, value: Any) -> None:
        self._try(lambda: persistence.write_json(file, value))

    def _try(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            text = f"what was learnt is not kept: {error.filename or self._folder}: {error.strerror}"
            if text not in self._engine.warnings:
                self._warn(text)


def cost_key(backend: LlamaBackend) -> str:
    """Everything that a pass's time depends on."""
    model, settings = backend.model, backend.settings
    status = model.path.stat()
    return " ".join(
        map(
            str,
            (
                model.path.name,
                status.st_size,
                cpu_name(),
                backend.n_threads,
                kernels().variant,
                version("llama-cpp-python"),
                version("edgellm"),
                settings.kv,
                settings.n_ubatch,
                backend.max_outputs > settings.n_outputs,
                model.options.n_gpu_layers,
                model.options.main_gpu,
                model.options.repack,
                *([fingerprint(model.options.loras)] if model.options.loras else ()),
            ),
        )
    )
