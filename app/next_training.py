"""When it is worth its while to learn beside a chat, and what that may take: lessons, memory, electricity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from edgellm.app import power
from edgellm.app.adapt_jobs import AdaptJob
from edgellm.app.defaults import adapted_folder
from edgellm.app.new_lessons import FEW_TOKENS, NewLessons
from edgellm.memory.plan import DoesNotFit

if TYPE_CHECKING:
    from edgellm.app.loading import Pair
    from edgellm.export.obtain.store import ModelFile
    from edgellm.memory.draft_adapter import AdapterFile
    from edgellm.runtime.conversation import ChatSession
    from edgellm.runtime.distillation.lessons import SavedLessons


@dataclass(frozen=True, slots=True)
class IdleBounds:
    """What learning beside a chat may take."""

    n_tokens: int = 2_000  # of answers that are new, which are waited for: learning fewer is not worth the time
    seconds: float = 600.0  # of one training, while it is let run
    on_battery: bool = False
    mem_bytes: int | None = None  # None: what is free, within the budget or the plan that the chat was given

    @property
    def may_spend(self) -> bool:
        """Whether there is electricity for it."""
        return power.may_spend(on_battery=self.on_battery)


BOUNDS = IdleBounds()


class NextTraining:
    """The training that a session's drafter would have next."""

    def __init__(self, session: ChatSession, pair: Pair, bounds: IdleBounds) -> None:
        self._session, self._pair, self._bounds = session, pair, bounds
        self._lessons = _lessons_of(session)
        self._lacking = 0  # tokens of answers before lessons are counted again
        self._new: NewLessons | None = None

    @cached_property
    def draft(self) -> ModelFile:
        """The drafter's own file, without what it learnt; to hash one of a gigabyte takes a second."""
        from edgellm.memory.split import model_sha256

        draft = self._pair.draft
        assert draft is not None
        return draft if draft.sha256 else replace(draft, sha256=model_sha256(draft.path))

    def answered(self, n_tokens: int) -> None:
        """The target has answered with so many."""
        self._lacking -= n_tokens

    def later(self) -> None:
        """Another process is at it: look again after some answers."""
        self._lacking = FEW_TOKENS

    def learnt(self) -> None:
        """It was done, whatever came of it."""
        self._lacking = 0
        if self._new is not None:
            self._new.mark()

    def job(self) -> AdaptJob | None:
        """None where it is not worth its while now.

        Raises:
            DoesNotFit: there is not enough memory.
            UnknownShape, GgufError, OSError: a file that cannot be read.
        """
        from edgellm.app.drafter_adapters import pick

        if self._lacking > 0 or not self._bounds.may_spend:
            return None
        adapter = pick(self._pair.target, self.draft)
        if not self._is_due(adapter.file if adapter is not None else None):
            return None
        return AdaptJob(
            self._pair.target,
            self.draft,
            adapter.file.path if adapter is not None else None,
            seconds=self._bounds.seconds,
            mem_bytes=self._room(),
            beside_chat=True,
        )

    def _is_due(self, adapter: AdapterFile | None) -> bool:
        """Whether a training was interrupted, or enough has come since the last one."""
        from edgellm.runtime.distillation.adopted import target_key
        from edgellm.runtime.distillation.unfinished import Unfinished

        assert self._lessons is not None
        key, sha256 = target_key(self._pair.target.path), self.draft.sha256 or ""
        if self._new is None:
            self._new = NewLessons(self._lessons, key, sha256)
        seen = adapter.record.get("lessons") if adapter is not None else None
        lacking = self._new.n_lacking(self._bounds.n_tokens, set(map(str, seen or ())))
        if lacking and Unfinished(adapted_folder(), key, sha256).is_there:
            return True
        self._lacking = lacking
        return not lacking

    def _room(self) -> int:
        """Bytes that are free, within what the chat was given. Raises DoesNotFit: too few of them."""
        from edgellm.memory.device import this_machine
        from edgellm.memory.gguf import read_header
        from edgellm.memory.shape import from_header
        from edgellm.memory.training_size import LINE, training_bytes
        from edgellm.memory.units import format_bytes

        room, plan = this_machine().usable_bytes, self._session.engine.plan
        if plan is not None and (self._pair.plan is not None or self._pair.options.budget_bytes is not None):
            room = min(room, plan.headroom_bytes + sum(line.n_bytes for line in plan.lines if line.name == LINE))
        if self._bounds.mem_bytes is not None:
            room = min(room, self._bounds.mem_bytes)
        needed = training_bytes(from_header(read_header(self.draft.path)))
        if needed > room:
            raise DoesNotFit(
                f"training {self.draft.name} takes {format_bytes(needed)} and there are {format_bytes(max(room, 0))} "
                "for it"
            )
        return room


def hindrance(session: ChatSession, pair: Pair) -> str | None:
    """Why nothing can learn beside a chat of this pair, in a sentence; None where it can."""
    from edgellm.memory.gguf import GgufError, read_header
    from edgellm.runtime.backends.llama_model import LlamaModel
    from edgellm.runtime.distillation.architecture import DistillationError, Shape

    engine = session.engine
    if pair.draft is None or engine.draft_model is None:
        return "no draft model is loaded; name a --draft, or leave out --adapt"
    if isinstance(engine.draft_model, LlamaModel) and engine.draft_model.is_head:
        return f"{pair.draft.name} is a draft head, which is not taught here"
    if {pair.draft.path.suffix, pair.target.path.suffix} != {".gguf"}:
        return f"{pair.draft.name} and {pair.target.name} have to be GGUF files for that"
    if pair.draft.parts:
        return f"{pair.draft.name} lies in {len(pair.draft.parts)} files, and a drafter learns in one; export it first"
    if _lessons_of(session) is None:
        return "no answers are kept that it could learn from; leave out --no-learn, or --adapt"
    if pair.asked_adapter is not None:
        return "--draft-adapter says what it knows; leave that out, or --adapt"
    if engine.options.loras:
        return "its target answers otherwise with --lora; leave that out, or --adapt"
    try:
        Shape.of(read_header(pair.draft.path))
    except (DistillationError, GgufError, OSError) as error:
        return str(error)
    return None


def _lessons_of(session: ChatSession) -> SavedLessons | None:
    """What the target's answers are kept in; None where they are not."""
    state = session.engine.pair_state
    return state.lessons if state is not None else None
