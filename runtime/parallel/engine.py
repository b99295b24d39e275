"""A loaded target that several conversations talk to at once; `load.py` makes one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from edgellm.runtime.answer import Answer, Piece
from edgellm.runtime.backends.base import Interrupted
from edgellm.runtime.backends.llama_sequences import LlamaSequences
from edgellm.runtime.backends.parked import n_common
from edgellm.runtime.engine import Engine
from edgellm.runtime.generation import Generation
from edgellm.runtime.parallel.passes import Meeting
from edgellm.runtime.parallel.saved_prefixes import SavedPrefixes
from edgellm.runtime.request import Request

_LOOK_S = 0.2  # between two looks at whether somebody who waits for a seat was called off


@dataclass(frozen=True, slots=True)
class Parts:
    """What the seats of an engine share."""

    meeting: Meeting
    contexts: tuple[LlamaSequences, ...]  # the target's, and the draft model's where there is one
    seats: tuple[Engine, ...]  # one for each conversation; models and what is learnt are the same
    saved: SavedPrefixes | None = None  # the target's beginnings on the disk


class ParallelEngine:
    """Answers as many requests at once as it has seats; the output of each is what it would be alone."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._free: deque[Engine] = deque(parts.seats)  # who left longest ago first
        self._changed = threading.Condition()
        self._is_closed = False
        if parts.saved is not None:
            parts.saved.start(self.wait_until_idle)

    @property
    def first(self) -> Engine:
        """What all seats have in common: model, template, options, plan, notes."""
        return self._parts.seats[0]

    @property
    def n_parallel(self) -> int:
        return len(self._parts.seats)

    @property
    def n_ctx(self) -> int:
        return self._parts.contexts[0].n_ctx

    @property
    def n_busy(self) -> int:
        """Conversations that are being answered."""
        return self.n_parallel - len(self._free)

    def generate(self, request: Request, *, cancel: threading.Event | None = None) -> SharedGeneration:
        """Answer a request, from a thread of its own; where all seats are taken, it waits for one.

        Raises:
            BadRequest: a token that is named is none of the model's, or the answer cannot be held to what it asks for.
        """
        cancel = cancel or threading.Event()
        return SharedGeneration(self, Generation(self.first, request, cancel=cancel), cancel)

    def check_open(self) -> None:
        """Raises Interrupted: it is closed."""
        if self._is_closed:
            raise Interrupted("the engine is closed")

    @contextmanager
    def seat(self, cancel: threading.Event, tokens: Sequence[int] = ()) -> Iterator[Engine]:
        """A seat, as a member of the meeting: the one that holds most of how `tokens` begin.

        Raises:
            Interrupted: called off while waiting, or the engine was closed.
        """
        with self._changed:
            while not self._free:
                if cancel.is_set() or self._is_closed:
                    raise Interrupted("stopped while waiting")
                self._changed.wait(_LOOK_S)
            self.check_open()
            engine = max(self._free, key=lambda one: n_common(one.backend.tokens, tokens))
            self._free.remove(engine)
        try:
            with self._parts.meeting.member():
                yield engine
        finally:
            saved, held = self._parts.saved, engine.backend.tokens
            if saved is not None:
                saved.offer(held)
            with self._changed:
                self._free.append(engine)
                self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Until nobody is answered."""
        with self._changed:
            while self.n_busy:
                self._changed.wait()

    def close(self) -> None:
        """Wait until everybody left, keep what was learnt, and free the models."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            while self.n_busy:
                self._changed.wait()
        if self._parts.saved is not None:
            self._parts.saved.close()
        first = self.first
        first.save()
        for context in self._parts.contexts:
            context.close()
        if first.draft_model is not None:
            first.draft_model.close()
        first.model.close()

    def __enter__(self) -> ParallelEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SharedGeneration:
    """An answer as it is written, beside others. As `Generation`, but others wait while a piece is looked at."""

    def __init__(self, engine: ParallelEngine, generation: Generation, cancel: threading.Event) -> None:
        self._engine, self._generation, self._cancel = engine, generation, cancel
        self.prepare = generation.prepare
        self._pieces = self._write()

    @property
    def answer(self) -> Answer:
        """The whole answer, once its last piece was given or it was closed.

        Raises:
            RuntimeError: it is still being written, or was never begun.
        """
        return self._generation.answer

    def pieces(self) -> Generator[Piece, None, None]:
        """Text and thought as they come; to be read in one thread, without waiting. Closing it ends the answer."""
        return self._pieces

    def finish(self) -> Answer:
        """Write all that is left of the answer."""
        for _ in self._pieces:
            pass
        return self.answer

    def close(self) -> None:
        """End the answer with what was said."""
        self._pieces.close()

    def _write(self) -> Generator[Piece, None, None]:
        self._engine.check_open()  # a prompt is written by the model
        with self._engine.seat(self._cancel, self._generation.prompt_tokens) as seat:
            self._generation.move_to(seat)
            try:
                yield from self._generation.pieces()
            finally:
                self._generation.close()
