"""A child that works for minutes, read on the side, so that it can be asked how far it is, suspended, and stopped."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from edgellm.app.listener import SILENCE, Listener
from edgellm.memory.children import Child, ChildFailed
from edgellm.memory.errors import EdgellmError
from edgellm.memory.plan import DoesNotFit

STOP_S = 90.0  # that it may take to keep what it has done; the step that it is in is finished first
POLL_S = 0.2
Event = Mapping[str, Any]


class BackgroundError(EdgellmError, RuntimeError):
    """The child failed; the message says how."""


class Background:
    """A running child of `memory.children`."""

    def __init__(
        self,
        module: str,
        request: Event,
        hear: Callable[[Event], None],
        *,
        what: str,
        environment: Mapping[str, str] | None = None,
        listener: Listener = SILENCE,
    ) -> None:
        """
        Args:
            hear: is told what the child tells, while this is polled or followed.
            what: it does, for messages: "training".
        """
        self._hear, self._what, self._listener = hear, what, listener
        self._events: queue.SimpleQueue[Event | Exception | None] = queue.SimpleQueue()
        self._child, self.ended = Child(module, request, environment=environment), False
        self.has_told = False  # anything yet
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for answer in self._child.answers():
                self._events.put(answer)
            self._events.put(None)
        except Exception as error:
            self._events.put(error)

    def suspend(self) -> None:
        """Let it stand still, with all that it holds, until `resume`."""
        if not self.ended:
            self._child.suspend()

    def resume(self) -> None:
        if not self.ended:
            self._child.resume()

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Hear what it has told since; whether it has ended.

        Raises:
            BackgroundError, DoesNotFit, OSError: it failed.
        """
        with suppress(queue.Empty):
            while not self.ended:
                event = self._events.get(timeout=timeout_s) if timeout_s else self._events.get_nowait()
                timeout_s = 0.0
                if event is None:
                    self.end()
                elif isinstance(event, Exception):
                    self.end()
                    raise self._failure(event)
                else:
                    self._take(event)
        return self.ended

    def follow(self, cancel: threading.Event | None = None) -> None:
        """Until it ends. Where `cancel` is set, or this process is interrupted, it keeps what it has done first.

        Raises:
            As `poll`; what interrupted this process.
        """
        try:
            while not self.poll(POLL_S):
                if cancel is not None and cancel.is_set():
                    self.stop()
        except (KeyboardInterrupt, SystemExit):
            with suppress(EdgellmError, OSError):
                self.stop()
            raise
        finally:
            self.end()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Let it keep what it has done, and end it. Raises as `poll`."""
        if self.ended:
            return
        self._child.ask_to_stop()
        until_s = time.monotonic() + timeout_s
        with self._listener.working("keeping what was done …"):
            while not self.poll(POLL_S) and time.monotonic() < until_s:
                pass
        self.end()

    def end(self, patience_s: float | None = None) -> None:
        """At once; `patience_s` is that of `Child.end`."""
        self.ended = True
        self._child.end(patience_s)

    def _take(self, event: Event) -> None:
        self.has_told = True
        if "does_not_fit" in event:
            self.end()
            raise DoesNotFit(event["does_not_fit"])
        if "errno" in event:
            self.end()
            raise OSError(event["errno"], event["strerror"], event["filename"])
        if "warning" in event:
            self._listener.warning(event["warning"])
        self._hear(event)

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, ChildFailed):
            return BackgroundError(str(error) if not error.ended else f"{self._what} failed: {error}")
        return error
