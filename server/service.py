"""What the endpoints share: the models, the desk, the threads, and what was counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgellm.app.listener import SILENCE, Listener
from edgellm.app.serving import Served, ServedModels, Writing
from edgellm.runtime.answer import Answer
from edgellm.runtime.sampling import Sampling
from edgellm.server.bodies import read_body, unless_gone
from edgellm.server.calls import Call
from edgellm.server.desk import Desk
from edgellm.server.fields import Fields
from edgellm.server.metrics import Metrics
from edgellm.server.request_log import note_answer, tell_safely
from edgellm.server.settings import Settings
from edgellm.server.streaming import EventStream, gather
from edgellm.server.strict_json import read_object
from edgellm.server.wire import Wire
from edgellm.server.writing import Run, Task, Work

Reader: TypeAlias = Callable[[Fields, Served, str, Sampling], Call]
GONE = 499  # nobody reads it; it is counted
_MAX_WARNINGS = 1_000  # then it says no more


class Service:
    """One server. `stop` and `end` may be called from any place of the event loop's thread."""

    def __init__(self, models: ServedModels, settings: Settings, listener: Listener = SILENCE) -> None:
        """`listener` is told, also from threads, of what goes wrong beside answers."""
        self.models, self.settings, self.metrics, self.listener = models, settings, Metrics(), listener
        self._warned = set(models.first.warnings)  # told when it was loaded
        self.desk = Desk(models.first.n_parallel, settings.n_queue)
        self.started_at = int(time.time())
        self._pool = ThreadPoolExecutor(models.first.n_parallel, "edgellm-answer")
        # Requests are read beside answers, one at a time, and by one thread: memory that the C library keeps for each
        # thread is then kept once.
        self._reader = ThreadPoolExecutor(1, "edgellm-read")
        self._cancels: set[threading.Event] = set()

    def stop(self) -> None:
        """Let answers end, and begin no more."""
        self.desk.close()
        if n := self.desk.n_running:
            answers = f"{n} answers" if n > 1 else "an answer"
            tell_safely(self.listener.note, f"waiting for {answers} to end; Ctrl-C again ends the server at once")

    def end(self) -> None:
        """End all answers at once."""
        for cancel in list(self._cancels):
            cancel.set()

    def close(self) -> None:
        """Wait for the threads."""
        self.end()
        for pool in (self._reader, self._pool):
            pool.shutdown(wait=True, cancel_futures=True)

    async def answer(self, request: Request, read: Reader, wire: Callable[[Call], Wire]) -> Response:
        """Read a request, and answer it whole or as a stream. Raises ApiError and other failures."""
        self.desk.check()
        data = await read_body(request, self.settings)
        cancel = threading.Event()
        loop = asyncio.get_running_loop()
        call, writings = await loop.run_in_executor(self._reader, self._read, data, read, cancel)

        def count(answer: Answer) -> None:
            self.metrics.count_answer(answer)
            note_answer(request.scope, answer)
            self._warn(call.served)

        run = Run(writings, self.desk.enter(), self._pool, cancel, count)
        self._keep(cancel)
        told = wire(call)
        if call.is_stream:
            return EventStream(run, told, ping_s=self.settings.ping_s)
        try:
            answers = await unless_gone(request.receive, gather(run, self.settings.ping_s))
        finally:
            run.close()
        return Response(status_code=GONE) if answers is None else JSONResponse(told.whole(answers))

    async def simple(self, request: Request, read: Callable[[Fields, Served], object]) -> Response:
        """Answer what takes no pass of a model."""
        data = await read_body(request, self.settings)

        def made() -> object:
            fields = Fields(read_object(data))
            served = self.models.get(fields.text("model"))
            return read(fields, served)

        return JSONResponse(await asyncio.get_running_loop().run_in_executor(self._reader, made))

    async def work(self, request: Request, read: Callable[[Fields, Served, threading.Event], Work]) -> Response:
        """Read a request, and answer it whole with what a thread at the desk makes. Raises as `answer`."""
        self.desk.check()
        data = await read_body(request, self.settings)
        cancel = threading.Event()

        def made() -> Work:
            fields = Fields(read_object(data))
            served = self.models.get(fields.text("model") or None)
            return read(fields, served, cancel)

        task = Task(await asyncio.get_running_loop().run_in_executor(self._reader, made), self.desk.enter(), self._pool)
        self._keep(cancel)
        try:
            told = await unless_gone(request.receive, task.result(self.settings.ping_s))
        finally:
            cancel.set()
            task.close()
        return Response(status_code=GONE) if told is None else JSONResponse(told)

    def _warn(self, served: Served) -> None:
        for text in served.warnings[:]:
            self.warn_once(text)

    def warn_once(self, text: str) -> None:
        """Tell what people must know, from any thread, however often it happens."""
        if text not in self._warned and len(self._warned) < _MAX_WARNINGS:
            self._warned.add(text)
            tell_safely(self.listener.warning, text)

    def _keep(self, cancel: threading.Event) -> None:
        self._cancels = {one for one in self._cancels if not one.is_set()} | {cancel}

    def _read(self, data: bytes, read: Reader, cancel: threading.Event) -> tuple[Call, list[Writing]]:
        fields = Fields(read_object(data))
        name = fields.text("model") or None
        served = self.models.get(name)
        call = read(fields, served, name or served.name, self.settings.sampling)
        writings = [served.generate(one, cancel=cancel) for one in call.requests]
        for writing in writings[:: call.n_choices_each]:
            writing.prepare()
        return call, writings
