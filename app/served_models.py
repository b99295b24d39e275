"""Which of the models that are offered are loaded: on demand, while they are used, and within the memory there is."""

from __future__ import annotations

import contextvars
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from edgellm.app.listener import SILENCE, Listener
from edgellm.app.offered import Already, Hold, Loaded, Offered, Source, load
from edgellm.memory.errors import EdgellmError
from edgellm.memory.heap import give_back

if TYPE_CHECKING:
    from edgellm.app.serving import Served


class NotServed(EdgellmError, LookupError):
    """A model of that name is not served; the message lists those that are."""


class Stopped(EdgellmError):
    """Nothing is loaded any more: the models are being closed."""


class ServedModels:
    """The models that are offered. The first answers where no name is given; a context manager.

    One thread loads them and lets them go. Where one does not fit beside those that are loaded, idle ones go, the least
    recently used first. Where none is idle, the one that was asked least recently answers who is there and takes no
    more, so that nobody waits for ever.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        keep_alive_s: float | None = None,
        left_bytes: Callable[[int], float] = lambda taken_bytes: math.inf,
        listener: Listener = SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            keep_alive_s: a model that nobody uses for so long is let go; None: it stays until another needs its memory.
            left_bytes: what one more may take beside those that take so much.
        """
        self.all = tuple(map(Offered, sources))
        self._by_name: dict[str, Offered] = {model.name: model for model in self.all}
        for model in self.all:
            for alias in model.source.aliases:
                self._by_name.setdefault(alias, model)
        self.keep_alive_s, self._left_bytes, self._listener, self._clock = keep_alive_s, left_bytes, listener, clock
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped, self._is_closed = threading.Event(), False

    @classmethod
    def of(cls, served: Served, aliases: Iterable[str] = ()) -> ServedModels:
        """One that is loaded already, and stays so."""
        models = cls([Already(served, tuple(aliases))])
        models._put(models.first, load(models.first.source, 0))
        return models

    @property
    def first(self) -> Offered:
        return self.all[0]

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    def get(self, name: str | None) -> Offered:
        """
        Raises:
            NotServed: there is none of that name.
        """
        if name is None:
            return self.first
        if name not in self._by_name:
            names = " or ".join(model.name for model in self.all)
            raise NotServed(f"the model {name[:100]!r} is not served here: take {names}")
        return self._by_name[name]

    def hold(self, model: Offered) -> Hold:
        """Keep a model loaded, or have it loaded; from any thread, and without waiting for it."""
        hold = Hold(model, self._clock(), self.release)
        with self._changed:
            model.waiting.append(hold)
            self._grant(model)
            if model.waiting and self._stopped.is_set():
                self._refuse(model, Stopped("the server is being stopped"))
            elif model.waiting:
                self._wake()
        return hold

    def release(self, hold: Hold) -> None:
        model = hold.model
        with self._changed:
            if hold in model.held:
                model.held.remove(hold)
                model.used_at = self._clock()
            elif hold in model.waiting:
                model.waiting.remove(hold)
            if self._thread is not None or self.keep_alive_s is not None:
                self._wake()

    def load(self, model: Offered) -> Served:
        """Load one now, and wait for it. Raises as `Hold.loaded`."""
        hold = self.hold(model)
        try:
            return hold.loaded.result().served
        finally:
            hold.release()

    def stop(self) -> None:
        """Load no more, and end a load that is under way: who waits is told. Those that are loaded answer on."""
        with self._changed:
            self._stopped.set()
            for model in self.all:
                self._refuse(model, Stopped("the server is being stopped"))
            self._changed.notify_all()

    def close(self) -> None:
        """Let all go; nobody may use them any more. Safe to call twice."""
        self.stop()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        for model in self.all:
            if model.loaded is not None:
                self._taken(model)()

    def __enter__(self) -> ServedModels:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wake(self) -> None:
        if self._thread is None and not self._is_closed:
            # The units in which sizes are told belong to whoever asks.
            run = functools.partial(contextvars.copy_context().run, self._manage)
            self._thread = threading.Thread(target=run, name="edgellm-models")
            self._thread.start()
        self._changed.notify_all()

    def _manage(self) -> None:
        from edgellm.runtime.backends.base import stops_loading

        stops_loading.set(self._stopped)
        while (task := self._next()) is not None:
            task()

    def _next(self) -> Callable[[], None] | None:
        """What is to be done, once there is something; None at the end."""
        with self._changed:
            while not self._is_closed:
                for model in self.all:
                    model.is_leaving = False
                    self._grant(model)
                wanted = [model for model in self.all if model.waiting]
                if wanted:
                    model = min(wanted, key=lambda one: one.waiting[0].asked_at)
                    model.is_loading = True
                    return functools.partial(self._load, model)
                idle = self._idle()
                ends_at = idle[0].used_at + self.keep_alive_s if idle and self.keep_alive_s is not None else math.inf
                wait_s = ends_at - self._clock()
                if wait_s <= 0:
                    return self._taken(idle[0])
                self._changed.wait(min(wait_s, threading.TIMEOUT_MAX))
        return None

    def _idle(self) -> list[Offered]:
        """Those that nobody uses, the one that was used longest ago first."""
        found = [model for model in self.all if model.loaded is not None and not model.held]
        return sorted(found, key=lambda model: model.used_at)

    def _grant(self, model: Offered) -> None:
        """Give a model to those who wait for it, if it may be had."""
        if model.loaded is None or model.is_leaving:
            return
        while model.waiting:
            hold = model.waiting.pop(0)
            model.held.add(hold)
            model.used_at = self._clock()
            hold.loaded.set_result(model.loaded)

    def _refuse(self, model: Offered, error: BaseException) -> None:
        while model.waiting:
            model.waiting.pop(0).loaded.set_exception(error)

    def _load(self, model: Offered) -> None:
        """Load a model that is waited for; a failure is told to all who do, and the next request tries again."""
        try:
            n_bytes = model.source.n_bytes()
            if self._make_room(model, n_bytes):
                self._put(model, self._loaded(model, n_bytes))
                # Whoever loads the first one at the start tells more.
                if not self._stopped.is_set() and (model is not self.first or model.n_loads > 1):
                    self._listener.note(f"{model.name} is loaded, context {model.n_ctx:,} tokens")
        except BaseException as error:  # whatever it is, those who wait are told
            with self._changed:
                self._refuse(model, error)
        finally:
            model.is_loading = False

    def _loaded(self, model: Offered, n_bytes: int) -> Loaded:
        """Where the system refuses memory that it seemed to have, idle ones go for it."""
        from edgellm.runtime.backends.base import OutOfMemory

        while True:
            try:
                return load(model.source, n_bytes)
            except OutOfMemory:
                with self._changed:
                    idle = self._idle()
                    if not idle:
                        raise
                    let_go = self._taken(idle[0])
            let_go()

    def _put(self, model: Offered, loaded: Loaded) -> None:
        with self._changed:
            model.loaded, model.used_at, model.n_loads = loaded, self._clock(), model.n_loads + 1
            model.n_ctx, model.n_vocab = loaded.served.n_ctx, loaded.served.vocabulary.n_tokens

    def _make_room(self, model: Offered, n_bytes: int) -> bool:
        """Let others go until there is room for one more; False where nobody waits for it any longer."""
        while True:
            with self._changed:
                others = [one for one in self.all if one.loaded is not None]
                taken_bytes = sum(one.loaded.n_bytes for one in others if one.loaded is not None)
                if not model.waiting or not others or n_bytes <= self._left_bytes(taken_bytes):
                    return bool(model.waiting)
                if idle := self._idle():
                    let_go = self._taken(idle[0])
                else:
                    if not any(one.is_leaving for one in others):
                        min(others, key=lambda one: one.used_at).is_leaving = True
                    self._changed.wait()
                    continue
            let_go()

    def _taken(self, model: Offered) -> Callable[[], None]:
        """Take a model from those that may be had; returns what lets it go."""
        loaded, model.loaded = model.loaded, None
        assert loaded is not None
        return functools.partial(self._let_go, model, [loaded])

    def _let_go(self, model: Offered, last: list[Loaded]) -> None:
        """`last` holds the last reference to it."""
        try:
            last.pop().close()
        except Exception as error:
            logging.getLogger("edgellm").error("%s could not be let go cleanly: %s", model.name, error)
        model.n_unloads += 1
        if not self._is_closed:
            give_back()
            self._listener.note(f"{model.name} is let go")
