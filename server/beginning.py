"""A request on its way to its answer: its model is loaded, and it is read by that model's vocabulary and template."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine

from edgellm.server.place import Place
from edgellm.server.wire import Wire
from edgellm.server.writing import Run


class Beginning:
    """What comes before a run. It has to be closed, however it went."""

    def __init__(self, work: Coroutine[None, None, tuple[Run, Wire]], place: Place, cancel: threading.Event) -> None:
        """`work` is done at `place`, and what comes of it looks at `cancel`; both are closed with it."""
        self._task, self._place, self._cancel = asyncio.ensure_future(work), place, cancel

    async def is_over(self, wait_s: float | None = None) -> bool:
        """Wait so long at most. Raises what failed, if it did."""
        done, _ = await asyncio.wait({self._task}, timeout=wait_s)
        if done:
            self._task.result()
        return bool(done)

    @property
    def result(self) -> tuple[Run, Wire]:
        """Of one that is over."""
        return self._task.result()

    def close(self) -> None:
        """End it, or the run that came of it."""
        if not self._task.cancel() and not self._task.cancelled():
            self._task.exception()  # told to whoever waits, if anybody does
        self._cancel.set()
        self._place.close()
