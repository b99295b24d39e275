"""What drafting knows of one target and its drafter: loaded when they are, written back when asked."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edgellm.memory.adapter import fingerprint
from edgellm.memory.context import ContextSettings
from edgellm.memory.cpu import cpu_name
from edgellm.memory.split import model_bytes
from edgellm.runtime.backends.base import Backend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_nextn import LlamaHead
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.distillation.lessons import SavedLessons
from edgellm.runtime.drafters.base import Learns, Proposer
from edgellm.runtime.learning import costs as curves
from edgellm.runtime.learning import persistence
from edgellm.runtime.learning.costs import CostCurve, Costs
from edgellm.runtime.learning.files import SealedFile
from edgellm.runtime.learning.ngrams import NgramCache
from edgellm.runtime.learning.persistence import SavedNgrams, SavedStore
from edgellm.runtime.text.vocabulary import Vocabulary


class Named(Protocol):
    """What is asked of the target's model."""

    @property
    def path(self) -> Path: ...

    @property
    def vocabulary(self) -> Vocabulary: ...


@runtime_checkable
class Timed(Protocol):
    """A backend whose passes are timed once for a machine: everything that their time depends on."""

    model: LlamaModel
    settings: ContextSettings
    max_outputs: int
    n_threads: int


class PairState:
    """The store, the lessons, the n-gram cache, the acceptance heads and the cost curves of a pair."""

    def __init__(
        self,
        model: Named,
        backend: Backend,
        draft: Path | None,
        options: EngineOptions,
        warn: Callable[[str], None],
    ) -> None:
        """
        Args:
            model, backend: the target's.
            draft: the draft model's file; None without one.
            options: `learn` and `learned` say what is kept and where.
            warn: told in a sentence what could not be read or written.
        """
        self._model, self._backend, self._draft, self._options = model, backend, draft, options
        self._folder, self._warn = options.learned, warn
        self._keeps = options.learn == "kept" and self._folder is not None
        key = persistence.target_key
        self._target_key = key(model.path, model.vocabulary, options.loras) if self._keeps else ""
        self._store: SavedStore | None = None
        self._lessons: SavedLessons | None = None
        self._ngrams: SavedNgrams | None = None
        self._learner: Learns | None = None
        self._curves: list[tuple[SealedFile, CostCurve]] = []
        self._told: set[str] = set()

    def with_draft(self, draft: Path, options: EngineOptions) -> PairState:
        """The same with another file of the drafter: costs and words are shared, whom to believe is learnt anew."""
        other = copy(self)
        other._draft, other._options, other._learner = draft, options, None
        return other

    def _file(self, kind: str, key: str) -> SealedFile | None:
        if self._folder is None or (kind != "costs" and not self._keeps):
            return None
        return persistence.sealed(self._folder, kind, key, self._warn)

    @property
    def store(self) -> SavedStore:
        """Earlier answers of this target."""
        if self._store is None:
            self._store = SavedStore(self._file("store", self._target_key), self._model.vocabulary.n_tokens)
        return self._store

    @property
    def lessons(self) -> SavedLessons | None:
        """What this target answered, for drafters to learn from; None where nothing is kept."""
        if self._lessons is None and self._keeps:
            self._lessons = SavedLessons(self._file("lessons", self._target_key), self._model.vocabulary.n_tokens)
        return self._lessons

    def ngrams(self, own: Vocabulary) -> NgramCache:
        """Which of the drafter's tokens the target's are."""
        theirs = self._model.vocabulary
        if self._ngrams is None:
            key = f"{own.fingerprint()} {theirs.fingerprint()}" if self._keeps else ""
            self._ngrams = SavedNgrams(self._file("ngrams", key), own.n_tokens, theirs.n_tokens)
        return self._ngrams.cache

    def costs(self, proposer: Proposer | None) -> Costs:
        """Curves of both models, measured now if they never were on this machine."""
        target: curves.Curve = self.curve(self._backend, curves.WIDTHS)
        if self._options.assume_cost is not None:
            target = curves.assumed(target(1), self._options.assume_cost)
        return Costs(target, self.curve(proposer.backend, curves.DRAFT_WIDTHS) if proposer is not None else None)

    def curve(self, backend: Backend, widths: tuple[int, ...]) -> CostCurve:
        """Of one model, measured now if it never was on this machine."""
        file = (
            self._file("costs", cost_key(backend))
            if isinstance(backend, Timed) and isinstance(backend.model, LlamaModel)
            else None
        )
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
            # Elsewhere the first pass of a width is compiled, or costs round trips of its own.
            once = 2 if isinstance(backend, Timed) and backend.settings.placed else 1
            curve = curves.measure(backend, widths, repeats=curves.N_REPEATS if file is not None else once)
            if file is not None and wanted <= set(curve.widths):  # what a busy machine left out is measured next time
                self._write(file, curve.to_json())
        if file is not None:
            self._curves.append((file, curve))
        return curve

    def attach(self, learner: Learns) -> None:
        """Let a drafter begin with what is known of its pair, and save what it learns."""
        self._learner = learner
        file = self._knowledge_file()
        data = persistence.read_json(file)
        if data is not None:
            try:
                learner.restore(data)
            except (ValueError, KeyError, TypeError, AttributeError):
                assert file is not None
                file.set_aside("holds no knowledge of a pair")

    def _knowledge_file(self) -> SealedFile | None:
        nobody = "its head" if self._options.head else "no model"
        draft = f"{self._draft.name} {model_bytes(self._draft)}" if self._draft is not None else nobody
        if self._draft is not None and self._options.draft_adapter is not None:  # it drafts otherwise, at the same cost
            draft += f" {self._options.draft_adapter}"
        return self._file("knowledge", f"{self._target_key} {draft}")

    def save(self) -> None:
        """Write everything that is new; what cannot be written is told once and lost."""
        if self._folder is None:
            return
        for part in (self._store, self._lessons, self._ngrams):
            if part is not None:
                self._try(part.save)
        if self._learner is not None and self._learner.has_learnt and (file := self._knowledge_file()):
            self._write(file, self._learner.to_json())
        for file, curve in self._curves:
            if curve.has_drifted and len(curve.widths) > 2:
                self._write(file, curve.to_json())

    def _write(self, file: SealedFile, value: Any) -> None:
        self._try(lambda: persistence.write_json(file, value))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            text = f"what was learnt is not kept in {self._folder}: {error.strerror}"  # told once, not for each file
            if text not in self._told:
                self._told.add(text)
                self._warn(text)


def cost_key(backend: Timed) -> str:
    """Everything that a pass's time depends on."""
    model, settings = backend.model, backend.settings
    return " ".join(
        map(
            str,
            (
                model.path.name,
                model_bytes(model.path),
                cpu_name(),
                backend.n_threads,
                kernels().variant,
                version("llama-cpp-python"),
                version("edgellm"),
                settings.kv,
                settings.n_ubatch,
                backend.max_outputs > settings.n_outputs,
                *([model.placement_key] if model.options.placed else ()),
                model.options.repack,
                *([fingerprint(model.options.loras)] if model.options.loras else ()),
                *(["head"] if isinstance(backend, LlamaHead) else ()),
                *([f"{settings.n_sequences} texts"] if settings.n_sequences > 1 else ()),
            ),
        )
    )
