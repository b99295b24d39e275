"""Answers for `async for`: a thread writes, the event loop reads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from typing import Protocol

from edgellm.runtime.answer import Answer, Piece


class Writing(Protocol):
    """What a thread iterates."""

    def pieces(self) -> Generator[Piece, None, None]: ...

    @property
    def answer(self) -> Answer: ...


class AsyncGeneration:
    """An answer as it is written: `async for piece in it`, then `answer` holds it whole.

    Closing the iterator (`aclose`, or leaving `contextlib.aclosing`) ends the answer with what was said; so does the
    end of the task that iterates. The next piece is computed while one is looked at.
    """

    def __init__(self, writing: Writing, cancel: threading.Event) -> None:
        """`cancel`: what the writing was made with."""
        self._writing, self._cancel = writing, cancel
        self._pieces = self._read()

    @property
    def answer(self) -> Answer:
        """Raises RuntimeError: it is still being written, or was never begun."""
        return self._writing.answer

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._pieces

    async def finish(self) -> Answer:
        """Write all that is left of the answer."""
        async for _ in self._pieces:
            pass
        return self.answer

    async def aclose(self) -> None:
        """End the answer with what was said."""
        await self._pieces.aclose()

    async def _read(self) -> AsyncGenerator[Piece, None]:
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

        def tell(one: Piece | BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(told.put_nowait, one)

        thread = threading.Thread(target=_write, args=(self._writing, tell), name="edgellm-answer")
        thread.start()
        try:
            while (one := await told.get()) is not None:
                if isinstance(one, BaseException):
                    raise one
                yield one
        finally:
            self._cancel.set()
            # Until the round that runs is over; a task that is being cancelled waits for it too.
            await asyncio.shield(loop.run_in_executor(None, thread.join))


def _write(writing: Writing, tell: Callable[[Piece | BaseException | None], None]) -> None:
    last: BaseException | None = None
    pieces = writing.pieces()
    try:
        for piece in pieces:
            tell(piece)
    except BaseException as error:  # whatever it is, the one who waits is told
        last = error
    finally:
        pieces.close()
    tell(last)
