"""What the endpoints share: the models, a desk for each, the threads, and what was counted."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from edgellm.app.listener import SILENCE, Listener
from edgellm.app.offered import Offered
from edgellm.app.served_models import ServedModels
from edgellm.app.serving import Served, Writing
from edgellm.runtime.answer import Answer
from edgellm.runtime.sampling import Sampling
from edgellm.server.beginning import Beginning
from edgellm.server.bodies import read_body, unless_gone
from edgellm.server.calls import Call
from edgellm.server.desk import Desk
from edgellm.server.fields import Fields
from edgellm.server.metrics import Metrics
from edgellm.server.place import Place
from edgellm.server.request_log import note_answer, tell_safely
from edgellm.server.settings import Settings
from edgellm.server.streaming import EventStream, gather
from edgellm.server.strict_json import read_object
from edgellm.server.wire import Wire, WireKind
from edgellm.server.writing import Run, Work, worked

Reader: TypeAlias = Callable[[Fields, Served, str, Sampling], Call]
GONE = 499  # nobody reads it; it is counted
_MAX_WARNINGS = 1_000  # then it says no more


@dataclass(frozen=True, slots=True)
class _Asked:
    """A body, and the model that it is for, which is perhaps not loaded."""

    fields: Fields  # all but the model's name
    model: Offered
    name: str  # that the client gave it


class Service:
    """One server. `stop` and `end` may be called from any place of the event loop's thread."""

    def __init__(self, models: ServedModels, settings: Settings, listener: Listener = SILENCE) -> None:
        """`listener` is told, also from threads, of what goes wrong beside answers."""
        self.models, self.settings, self.metrics, self.listener = models, settings, Metrics(), listener
        self.desks = {model: Desk(model.n_parallel, settings.n_queue) for model in models.all}
        self._warned: set[str] = set()
        self.started_at = int(time.time())
        # Requests are read beside answers, one at a time, and by one thread: memory that the C library keeps for each
        # thread is then kept once.
        self._reader = ThreadPoolExecutor(1, "edgellm-read")
        self._cancels: set[threading.Event] = set()

    @property
    def desk(self) -> Desk:
        """Of the first model."""
        return self.desks[self.models.first]

    def stop(self) -> None:
        """Let answers end, and begin no more."""
        for desk in self.desks.values():
            desk.close()
        self.models.stop()
        if n := sum(desk.n_running for desk in self.desks.values()):
            answers = f"{n} answers" if n > 1 else "an answer"
            tell_safely(self.listener.note, f"waiting for {answers} to end; Ctrl-C again ends the server at once")

    def end(self) -> None:
        """End all answers at once."""
        for cancel in list(self._cancels):
            cancel.set()

    def close(self) -> None:
        """Wait for the threads, and let the models go."""
        self.end()
        self._reader.shutdown(wait=True, cancel_futures=True)
        self.models.close()

    async def answer(self, request: Request, read: Reader, wires: WireKind) -> Response:
        """Read a request, and answer it whole or as a stream. Raises ApiError and other failures."""
        asked = await self._asked(request)
        is_stream, ping_s = asked.fields.peek("stream") is True, self.settings.ping_s
        place, cancel = self._enter(asked.model), self._new_cancel()
        beginning = Beginning(self._begin(asked, place, cancel, read, wires, request.scope), place, cancel)
        with contextlib.ExitStack() as stack:
            stack.callback(beginning.close)
            if not is_stream:
                told = await unless_gone(request.receive, _whole(beginning, ping_s))
                return Response(status_code=GONE) if told is None else JSONResponse(told)
            # What is refused soon has a status of its own; a stream that waits longer shows that it is alive.
            if await unless_gone(request.receive, beginning.is_over(ping_s)) is None:
                return Response(status_code=GONE)
            stack.pop_all()
            return EventStream(beginning, wires, ping_s=ping_s)

    async def simple(self, request: Request, read: Callable[[Fields, Served], object]) -> Response:
        """Answer what takes no pass of a model."""
        asked = await self._asked(request)
        told = await unless_gone(request.receive, self._look(asked.model, partial(read, asked.fields)))
        return Response(status_code=GONE) if told is None else JSONResponse(told)

    async def about_first(self, request: Request, read: Callable[[Served], object]) -> Response:
        """Say something of the first model, which is loaded for it."""
        told = await unless_gone(request.receive, self._look(self.models.first, read))
        return Response(status_code=GONE) if told is None else JSONResponse(told)

    async def work(self, request: Request, read: Callable[[Fields, Served, threading.Event], Work]) -> Response:
        """Read a request, and answer it whole with what a thread at the desk makes. Raises as `answer`."""
        asked = await self._asked(request)
        place, cancel = self._enter(asked.model), self._new_cancel()

        async def made() -> object:
            loaded = await place.loaded()
            work = await place.read(self._reader, lambda: read(asked.fields, loaded.served, cancel))
            return await worked(work, place, loaded.threads)

        try:
            told = await unless_gone(request.receive, made())
        finally:
            cancel.set()
            place.close()
        return Response(status_code=GONE) if told is None else JSONResponse(told)

    def _warn(self, served: Served) -> None:
        for text in served.warnings[:]:
            self.warn_once(text)

    def warn_once(self, text: str) -> None:
        """Tell what people must know, from any thread, however often it happens."""
        if text not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(text)
            tell_safely(self.listener.warning, text)

    async def _asked(self, request: Request) -> _Asked:
        """Raises ApiError and NotServed."""
        refusals = [desk.refusal() for desk in self.desks.values()]
        if refusals[0] is not None and all(refusals):  # whoever it is for: its body need not be read
            raise refusals[0]
        data = await read_body(request, self.settings)

        def read() -> _Asked:
            fields = Fields(read_object(data))
            name = fields.text("model") or None
            model = self.models.get(name)
            return _Asked(fields, model, name or model.name)

        return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    def _enter(self, model: Offered) -> Place:
        """A place in the queue, from when on the model is loaded or stays so. Raises ApiError: there is none."""
        ticket = self.desks[model].enter()
        return Place(self.models.hold(model), ticket)

    async def _begin(
        self, asked: _Asked, place: Place, cancel: threading.Event, read: Reader, wires: WireKind, scope: Scope
    ) -> tuple[Run, Wire]:
        loaded = await place.loaded()
        call, writings = await place.read(self._reader, lambda: self._read(asked, loaded.served, read, cancel))

        def count(answer: Answer) -> None:
            self.metrics.count_answer(answer)
            note_answer(scope, answer)
            self._warn(loaded.served)

        return Run(writings, place, loaded.threads, cancel, count), wires(call)

    async def _look(self, model: Offered, read: Callable[[Served], object]) -> object:
        """What the thread that reads requests makes of a model."""
        place = Place(self.models.hold(model))
        try:
            loaded = await place.loaded()
            return await place.read(self._reader, lambda: read(loaded.served))
        finally:
            place.close()

    def _new_cancel(self) -> threading.Event:
        """What ends an answer, and is set when it has ended."""
        cancel = threading.Event()
        self._cancels = {one for one in self._cancels if not one.is_set()} | {cancel}
        return cancel

    def _read(self, asked: _Asked, served: Served, read: Reader, cancel: threading.Event) -> tuple[Call, list[Writing]]:
        call = read(asked.fields, served, asked.name, self.settings.sampling)
        writings = [served.generate(one, cancel=cancel) for one in call.requests]
        for writing in writings[:: call.n_choices_each]:
            writing.prepare()
        return call, writings


async def _whole(beginning: Beginning, pause_s: float) -> dict[str, object]:
    await beginning.is_over()
    run, wire = beginning.result
    answers: list[Answer] = await gather(run, pause_s)
    return wire.whole(answers)
