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
from edgellm.server.desk import Ticket
from edgellm.server.errors import unavailable


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
        ticket: Ticket,
        pool: Executor,
        cancel: threading.Event,
        count: Callable[[Answer], None],
    ) -> None:
        """
        Args:
            cancel: what the writings were made with; `close` sets it.
            count: told of each answer, ended or not, from the thread.
        """
        self._writings, self._ticket, self._pool, self.cancel, self._count = writings, ticket, pool, cancel, count
        self._loop = asyncio.get_running_loop()
        self._is_begun = False
        self._events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    async def events(self, pause_s: float) -> AsyncGenerator[Event | None, None]:
        """What is written; None where nothing was for `pause_s`.

        Raises:
            ApiError: the server is being stopped.
            EdgellmError: the engine failed.
        """
        while not await self._ticket.is_called(pause_s):
            yield None
        work = self._loop.run_in_executor(self._pool, self._write)
        self._is_begun = True
        work.add_done_callback(lambda _: self._ticket.leave())
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

    def close(self) -> None:
        """End what is not whole, and give the place at the desk back; has to be called, however the run went."""
        self.cancel.set()
        if not self._is_begun:  # otherwise the thread does so when it ends
            self._ticket.leave()

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


class Task:
    """Work of one request that is no answer, done in one go by one thread."""

    def __init__(self, work: Work, ticket: Ticket, pool: Executor) -> None:
        self._work, self._ticket, self._pool = work, ticket, pool
        self._is_begun = False

    async def result(self, pause_s: float) -> object:
        """Raises what the work raises, and ApiError: the server is being stopped."""
        while not await self._ticket.is_called(pause_s):
            pass
        done = asyncio.get_running_loop().run_in_executor(self._pool, self._work)
        self._is_begun = True
        done.add_done_callback(self._ended)
        try:
            return await asyncio.shield(done)  # a thread goes on to its end, and so long its place is taken
        except Interrupted as error:
            raise unavailable("the server is being stopped") from error

    def close(self) -> None:
        """Give the place back; has to be called, however it went."""
        if not self._is_begun:  # otherwise the thread does so when it ends
            self._ticket.leave()

    def _ended(self, done: asyncio.Future[object]) -> None:
        self._ticket.leave()
        if not done.cancelled():
            done.exception()  # looked at, for whoever asked may be gone
