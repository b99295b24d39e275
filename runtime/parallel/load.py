"""Paths in, an engine for several conversations out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from edgellm.memory.context import ContextSettings
from edgellm.memory.draft_heads import is_head_alone
from edgellm.memory.gguf import GgufError
from edgellm.memory.onnx_graph import is_onnx
from edgellm.memory.plan import MemoryPlan
from edgellm.memory.split import read_model
from edgellm.runtime.backends.base import LoadError, OneTextOnly, StopSwitch
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_sequences import LlamaSequences
from edgellm.runtime.backends.parked import N_PARKED
from edgellm.runtime.backends.state_rows import UnknownState
from edgellm.runtime.bringup.load import (
    LoadedDraft,
    draft_of,
    draft_options,
    draft_settings,
    proposer_of,
    target_options,
)
from edgellm.runtime.bringup.loading import Model, open_model
from edgellm.runtime.bringup.planning import DEFAULTS, EngineOptions, plan_here, reserve, unplanned
from edgellm.runtime.bringup.remarks import about_target
from edgellm.runtime.drafters.acceptance import Acceptance
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.tuning import TUNING
from edgellm.runtime.engine import Engine
from edgellm.runtime.learning import costs as curves
from edgellm.runtime.learning.costs import CostCurve, Costs
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.learning.pair_state import PairState
from edgellm.runtime.parallel.economics import SharedCurve, SharedDraftCurve, slices_by
from edgellm.runtime.parallel.engine import ParallelEngine, Parts
from edgellm.runtime.parallel.passes import Meeting, PassQueue
from edgellm.runtime.parallel.prefix_files import PrefixFiles
from edgellm.runtime.parallel.saved_prefixes import SavedPrefixes
from edgellm.runtime.parallel.sequence import SequenceBackend
from edgellm.runtime.text.template import usable

WIDTHS = (*curves.WIDTHS, 24, 32)  # tokens of a pass that are measured: wider ones than one conversation has


def load_parallel(
    target: Path | str,
    draft: Path | str | None = None,
    options: EngineOptions = DEFAULTS,
    *,
    plan: MemoryPlan | None = None,
    warn: Callable[[str], None] | None = None,
) -> ParallelEngine:
    """Load a target for `options.n_parallel` conversations at once and, if named, a drafter of any vocabulary.

    Args:
        warn: told, while answers are given, of beginnings that cannot be kept on the disk; added to the engine's
            warnings if not given.

    Raises:
        DoesNotFit: there is not enough memory, found before anything is loaded; the message names what would fit.
        LoadError: a file that cannot be loaded, or a model that cannot be kept for several sequences.
    """
    target, draft = Path(target), Path(draft) if draft is not None else None
    left_out = _left_out(target, draft, options)
    if left_out is not None:
        draft, options = None, replace(options, head=False)
    chosen, note = plan_here(target, draft, options, plan)
    if chosen is not None:
        reserve(chosen)
        draft = draft if chosen.settings.drafter else None
    with ExitStack() as opened:  # nobody else closes what is open where loading fails
        loader = _Loader(options, chosen, note, opened, warn, [left_out] if left_out is not None else [])
        engine = loader.load(target, draft)
        opened.pop_all()
        return engine


def _left_out(target: Path, draft: Path | None, options: EngineOptions) -> str | None:
    """Why what should draft does not, in a sentence: a draft head is given the states of one text."""
    head = target.name if options.head and draft is None else None
    if draft is not None and not is_onnx(draft):
        with contextlib.suppress(GgufError, OSError):  # which the engine refuses with a reason
            head = draft.name if is_head_alone(read_model(draft)) else None
    if head is None:
        return None
    return (
        f"the draft head of {head} is left out: it drafts for one conversation, without --parallel and --prefix-cache"
    )


@dataclass(slots=True)
class _Loader:
    options: EngineOptions
    plan: MemoryPlan | None
    note: str
    opened: ExitStack
    warn: Callable[[str], None] | None
    said: list[str]  # what is warned of before anything is loaded

    def load(self, target: Path, draft: Path | None) -> ParallelEngine:
        options = self.options
        settings = self.plan.settings if self.plan else unplanned(options)
        model = self._several(open_model(target, target_options(options, settings)))
        trained = model.n_ctx_train or settings.target.n_ctx
        main = replace(settings.target, n_ctx=min(settings.target.n_ctx, trained), n_sequences=options.n_parallel)
        settings = replace(settings, target=main)
        meeting = Meeting()
        context = self._context(model, settings.target)
        queue = meeting.queue(context)
        template, refusal = usable(model.chat_template, model.vocabulary)
        notes, warnings = about_target(model, template, refusal, self.plan, options)
        warnings[:0] = self.said
        if not model.same_bits:
            warnings.append("the engine's own kernels: beside others, an answer may differ at near ties")
        saved = self._saved(meeting, context, warnings)
        engines = [
            Engine(
                model,
                SequenceBackend(meeting, queue, sequence, max_outputs=settings.n_draft + 1, stop=stop, saved=saved),
                template,
                options,
                settings,
                plan=self.plan,
                n_draft=min(settings.n_draft, options.n_draft),
                stop_switch=stop,
                notes=[self.note, *notes],
                warnings=warnings,
            )
            for sequence, stop in enumerate(StopSwitch() for _ in range(options.n_parallel))
        ]
        with meeting.member():
            parts = self._with_drafter(meeting, queue, engines, draft)
            for one in parts.contexts:
                one.forget()  # what costs were measured with
        return ParallelEngine(replace(parts, saved=saved))

    def _with_drafter(self, meeting: Meeting, queue: PassQueue, engines: list[Engine], draft: Path | None) -> Parts:
        options, first = self.options, engines[0]
        copy = first.settings.copy
        state = PairState(first.model, first.backend, draft, options, first.warnings.append)
        loaded, draft_queue = self._draft(meeting, engines, draft)
        store = state.store if options.learn != "off" and (copy or options.learned is not None) else None
        if not loaded and not copy and store is None:
            return Parts(meeting, (queue.context,), tuple(engines))
        costs = self._costs(state, meeting, queue, draft_queue)
        same = bool(loaded) and loaded[0].match.same
        acceptance = Acceptance(TUNING, passes_per_token=1.0 if same else None)
        seats = []
        for sequence, engine in enumerate(engines):
            own = loaded[sequence] if loaded else None
            drafter = AdaptiveDrafter(
                engine.backend,
                _shared(costs, queue, draft_queue) if not options.fixed else None,
                model=proposer_of(engine, own, options, state, first.warnings, goes_ahead=False)
                if own is not None
                else None,
                conversation=NgramIndex(engine.backend.n_ctx + 1) if copy else None,
                store=store.index if store is not None else None,
                fixed=options.n_draft if options.fixed else None,
                stop=options.stop,
                acceptance=acceptance,
            )
            if own is not None:
                engine = replace(
                    engine, draft_model=own.model, draft_template=own.template, pair=own.match, table=own.table
                )
            seats.append(replace(engine, drafter=drafter, pair_state=state))
        learner = seats[0].controller
        assert learner is not None
        state.attach(learner)
        contexts = (queue.context, *([draft_queue.context] if draft_queue else ()))
        return Parts(meeting, contexts, tuple(seats))

    def _draft(
        self, meeting: Meeting, engines: list[Engine], path: Path | None
    ) -> tuple[list[LoadedDraft], PassQueue | None]:
        """The draft model for each conversation: one set of weights, one sequence each."""
        if path is None:
            return [], None
        first, options = engines[0], self.options
        model = self._several(open_model(path, draft_options(options, first.settings)))
        settings: ContextSettings = replace(
            draft_settings(first, model, first.n_draft), n_outputs=options.n_parallel, n_sequences=options.n_parallel
        )
        queue = meeting.queue(self._context(model, settings))
        backends = [
            SequenceBackend(meeting, queue, sequence, max_outputs=1, stop=engine.stop_switch)
            for sequence, engine in enumerate(engines)
        ]
        loaded = draft_of(first, path, model, backends[0], first.notes, first.warnings)
        return [replace(loaded, backend=backend) for backend in backends], queue

    def _saved(self, meeting: Meeting, context: LlamaSequences, warnings: list[str]) -> SavedPrefixes | None:
        folder = self.options.prefixes
        if folder is None:
            return None
        files = PrefixFiles(folder, self.options.prefix_bytes, self.warn or warnings.append)
        try:
            return SavedPrefixes(files, meeting, context)
        except UnknownState as error:
            warnings.append(f"long beginnings are not kept on the disk: {error}")
            return None

    def _several(self, model: Model) -> LlamaModel:
        """Raises LoadError: the model is run by an engine that keeps one sequence."""
        self.opened.callback(model.close)
        if not isinstance(model, LlamaModel):
            raise LoadError(
                "an ONNX model serves one conversation at a time: take it as GGUF, or no --parallel and --prefix-cache"
            )
        if model.has_encoder:
            raise OneTextOnly(
                f"{model.path.name} has an encoder, whose output the engine keeps for one text at a time: serve it "
                "without --parallel and --prefix-cache"
            )
        return model

    def _context(self, model: LlamaModel, settings: ContextSettings) -> LlamaSequences:
        context = LlamaSequences(model, settings, self.options.n_parallel, n_parked=N_PARKED)
        self.opened.callback(context.close)
        return context

    def _costs(
        self, state: PairState, meeting: Meeting, queue: PassQueue, draft_queue: PassQueue | None
    ) -> tuple[CostCurve, CostCurve | None]:
        """Curves of both models, of passes as wide as several conversations make them, which every pass corrects."""
        found: list[CostCurve | None] = []
        for of, widths in ((queue, WIDTHS), (draft_queue, curves.DRAFT_WIDTHS)):
            if of is None:
                found.append(None)
                continue
            wide = SequenceBackend(meeting, of, 0, max_outputs=of.context.n_outputs, stop=StopSwitch())
            curve = state.curve(wide, widths)
            of.observe = curve.observe
            of.slice_for = slices_by(curve)
            found.append(curve)
        target, draft = found
        assert target is not None
        return target, draft


def _shared(costs: tuple[CostCurve, CostCurve | None], queue: PassQueue, draft_queue: PassQueue | None) -> Costs:
    target, draft = costs
    shared = SharedDraftCurve(draft, draft_queue) if draft is not None and draft_queue is not None else None
    return Costs(SharedCurve(target, queue), shared, n_rounds_kept=2)  # others come and go
