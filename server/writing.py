"""Between threads that write answers and the event loop that sends them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias

from edgellm.app.serving import Writing
from edgellm.runtime.answer import Answer, Piece
from edgellm.runtime.backends.base import Interrupted
from edgellm.server.errors import unavailable
from edgellm.server.place import Place


@dataclass(frozen=True, slots=True)
class Wrote:
    """A part of a choice."""

    index: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is whole."""

    index: int
    answer: Answer


Event: TypeAlias = Wrote | Ended
Work: TypeAlias = Callable[[], object]
"""What a thread does for a request; its result is the JSON to answer with."""


class Run:
    """The choices of one request, written one after the other by one thread."""

    def __init__(
        self,
        writings: Sequence[Writing],
        place: Place,
        pool: Executor,
        cancel: threading.Event,
        count: Callable[[Answer], None],
    ) -> None:
        """
        Args:
            cancel: what the writings were made with.
            count: told of each answer, ended or not, from the thread.
        """
        self._writings, self._place, self._pool, self.cancel, self._count = writings, place, pool, cancel, count
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    async def events(self, pause_s: float) -> AsyncGenerator[Event | None, None]:
        """What is written; None where nothing was for `pause_s`.

        Raises:
            ApiError: the server is being stopped.
            EdgellmError: the engine failed.
        """
        while not await self._place.is_called(pause_s):
            yield None
        self._place.turn(self._pool, self._write)
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), pause_s)
            except TimeoutError:
                yield None
                continue
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event

    def _write(self) -> None:
        last: BaseException | None = None
        try:
            for index, writing in enumerate(self._writings):
                self._write_one(index, writing)
        except BaseException as error:  # whatever it is, the one who waits is told
            last = error
        self._tell(last)

    def _write_one(self, index: int, writing: Writing) -> None:
        if self.cancel.is_set():
            raise unavailable("the server is being stopped")
        pieces = writing.pieces()
        try:
            for piece in pieces:
                self._tell(Wrote(index, piece))
        finally:
            pieces.close()
            with contextlib.suppress(RuntimeError):  # it had not begun
                self._count(writing.answer)
        if writing.answer.finish_reason == "interrupted":
            raise unavailable("the server is being stopped")
        self._tell(Ended(index, writing.answer))

    def _tell(self, event: Event | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


async def worked(work: Work, place: Place, pool: Executor) -> object:
    """What a thread makes in one go when it is its turn, which is no answer.

    Raises what the work raises, and ApiError: the server is being stopped.
    """
    await place.is_called()
    try:
        return await asyncio.shield(place.turn(pool, work))
    except Interrupted as error:
        raise unavailable("the server is being stopped") from error
