"""What a request holds until it is answered: a place at its model's desk, and the model itself, kept loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from edgellm.app.offered import Hold, Loaded
from edgellm.server.desk import Ticket

_T = TypeVar("_T")


class Place:
    """Given back once it was closed and no thread works for it any more. Used by one event loop alone."""

    def __init__(self, hold: Hold, ticket: Ticket | None = None) -> None:
        """`ticket`: None for what takes no pass of the model, and so no turn."""
        self._hold, self._ticket = hold, ticket
        self._n_threads = 0
        self._is_closed = False

    async def loaded(self) -> Loaded:
        """The model, once it is loaded. Raises what loading raises."""
        return await asyncio.wrap_future(self._hold.loaded)

    async def is_called(self, wait_s: float | None = None) -> bool:
        """Wait so long at most for one's turn. Raises ApiError: there will be none."""
        return self._ticket is None or await self._ticket.is_called(wait_s)

    async def read(self, pool: Executor, work: Callable[[], _T]) -> _T:
        """What a thread makes beside others; where nobody waits for it any longer, it goes on to its end."""
        return await asyncio.shield(self._begin(pool, work, lambda: None))

    def turn(self, pool: Executor, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """What a thread makes in its turn, at whose end the next one is called. To be shielded by whoever waits."""
        if self._ticket is None:
            return self._begin(pool, work, lambda: None)
        self._ticket.begin()
        return self._begin(pool, work, self._ticket.leave)

    def close(self) -> None:
        self._is_closed = True
        self._give_back()

    def _begin(self, pool: Executor, work: Callable[[], _T], at_end: Callable[[], None]) -> asyncio.Future[_T]:
        def ended(done: asyncio.Future[_T]) -> None:
            if not done.cancelled():
                done.exception()  # told to whoever waits, if anybody does
            self._n_threads -= 1
            at_end()
            self._give_back()

        self._n_threads += 1
        begun = asyncio.get_running_loop().run_in_executor(pool, work)
        begun.add_done_callback(ended)
        return begun

    def _give_back(self) -> None:
        if self._is_closed and not self._n_threads:
            if self._ticket is not None:
                self._ticket.leave()
            self._hold.release()
