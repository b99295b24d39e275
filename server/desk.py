"""Who is answered, who waits, and who is turned away."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from edgellm.server.errors import ApiError, unavailable

_MOST_S = 60  # that a client is told to wait
_WEIGHT = 0.2  # of a new request in the average


class Desk:
    """First come, first served: `n_parallel` at once, `n_queue` waiting. Used by one event loop alone."""

    def __init__(self, n_parallel: int, n_queue: int) -> None:
        self._n_parallel, self._n_queue = n_parallel, n_queue
        self._running: set[Ticket] = set()
        self._waiting: deque[Ticket] = deque()
        self._request_s = 1.0  # a moving average
        self._is_closed = False

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def refusal(self) -> ApiError | None:
        """Why nobody can enter now: too many wait already, or nobody is served any more."""
        if self._is_closed:
            return unavailable("the server is being stopped")
        if len(self._running) < self._n_parallel or len(self._waiting) < self._n_queue:
            return None
        return ApiError(
            429,
            f"{len(self._waiting)} requests are waiting already: try again later, or start with a larger --queue",
            kind="rate_limit_error",
            code="queue_full",
            headers={"retry-after": str(self._wait_s())},
        )

    def enter(self) -> Ticket:
        """Take the last place. Raises ApiError, the refusal."""
        if refusal := self.refusal():
            raise refusal
        ticket = Ticket(self)
        self._waiting.append(ticket)
        self._call_next()
        return ticket

    def close(self) -> None:
        """Those who are answered are answered to the end; those who wait are sent away."""
        self._is_closed = True
        for ticket in list(self._waiting):
            ticket.refuse(unavailable("the server is being stopped"))
        self._waiting.clear()

    def leave(self, ticket: Ticket) -> None:
        """A ticket is done with, or given back unused."""
        if ticket in self._running:
            self._running.discard(ticket)
            if ticket.begun_at is not None:
                self._request_s += _WEIGHT * (time.monotonic() - ticket.begun_at - self._request_s)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        self._call_next()

    def _call_next(self) -> None:
        while self._waiting and len(self._running) < self._n_parallel:
            ticket = self._waiting.popleft()
            self._running.add(ticket)
            ticket.call()

    def _wait_s(self) -> int:
        """Until the queue has moved by one, in whole seconds."""
        return max(1, min(_MOST_S, math.ceil(self._request_s / self._n_parallel)))


class Ticket:
    """A place in the queue, and then at the desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.begun_at: float | None = None
        self._called: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def call(self) -> None:
        if not self._called.done():
            self._called.set_result(None)

    def refuse(self, error: ApiError) -> None:
        if not self._called.done():
            self._called.set_exception(error)
            self._called.exception()  # looked at, for whoever waits may be gone

    async def is_called(self, wait_s: float | None) -> bool:
        """Wait so long at most for one's turn, None: as long as it takes. Raises ApiError: there will be none."""
        done, _ = await asyncio.wait({self._called}, timeout=wait_s)
        if done:
            self._called.result()
        return bool(done)

    def begin(self) -> None:
        """The work itself begins: what follows counts for how long others are told to wait."""
        self.begun_at = time.monotonic()

    def leave(self) -> None:
        """Safe to call twice."""
        self._desk.leave(self)
