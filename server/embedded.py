"""A server inside a Python program: other programs ask over HTTP, the program itself by `async for`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edgellm.app.defaults import drafting_options
from edgellm.app.listener import SILENCE, Listener
from edgellm.app.loading import prepare
from edgellm.app.served_models import ServedModels
from edgellm.app.serving import check_installed, open_served
from edgellm.runtime.asynchronous import AsyncGeneration
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.request import Messages, Request
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.guidance import asked_grammar


class Server:
    """A model that several conversations are had with at once; a context manager.

        with edgellm.Server("qwen2.5-coder-1.5b-instruct", n_parallel=4) as server:
            print(server.url)  # for clients of OpenAI's API

            async def ask(question):
                async for piece in server.stream(question, max_tokens=64):
                    print(piece.text, end="")

    Raises:
        CannotServe: Starlette or uvicorn is missing.
        CannotListen: the port is taken, or others would reach a server that asks for no key.
        DoesNotFit, LoadError, UnknownModel: as `edgellm.load`.
    """

    def __init__(
        self,
        model: Path | str | None = None,
        draft: Path | str | None = None,
        options: EngineOptions | None = None,
        *,
        n_parallel: int = 1,
        host: str = "127.0.0.1",
        port: int = 0,
        api_keys: Sequence[str] = (),
        n_queue: int = 64,
        sampling: Sampling = GREEDY,
        listener: Listener = SILENCE,
    ) -> None:
        """
        Args:
            n_parallel: conversations at once, each with a context of its own.
            port: 0 for any that is free.
            api_keys: of which clients need one, if there are any.
            n_queue: requests that may wait; more are told to come back.
            sampling: of requests that leave it open.
        """
        check_installed()
        from edgellm.server.listening import CannotListen, HttpServer, is_loopback, listen, url_of
        from edgellm.server.service import Service
        from edgellm.server.settings import Settings

        if not is_loopback(host) and not api_keys:
            raise CannotListen(f"on {host} others reach the server: give api_keys, or leave out host")
        options = replace(options or EngineOptions(**drafting_options()), n_parallel=n_parallel)
        settings = Settings(sampling=sampling, n_queue=n_queue, api_keys=tuple(api_keys), is_loopback=is_loopback(host))
        self._stack = ExitStack()
        with ExitStack() as stack:
            sock = stack.enter_context(listen(host, port))
            self.url = f"{url_of(sock)}/v1"
            pair = prepare(model, draft, options, listener=listener)
            self._served = stack.enter_context(open_served(pair, listener))
            ready = threading.Event()
            self._http = HttpServer(Service(ServedModels.of(self._served), settings, listener), ready.set)
            thread = threading.Thread(target=self._http.serve_on, args=(sock,), name="edgellm-http")
            thread.start()
            stack.callback(thread.join)
            stack.callback(self._http.stop)
            ready.wait()
            self._stack = stack.pop_all()

    def stream(
        self, messages: Messages, *, schema: object = None, grammar: str | None = None, **settings: Any
    ) -> AsyncGeneration:
        """An answer for `async for`, beside those of clients. Settings are those of `Engine.generate`.

        Raises:
            BadRequest: it cannot be answered as it stands.
        """
        asked = asked_grammar(schema, grammar)
        constraint = asked.of(self._served.vocabulary) if asked is not None else None
        request = Request.of(messages, constraint=constraint, **settings)
        cancel = threading.Event()
        return AsyncGeneration(self._served.generate(request, cancel=cancel), cancel)

    def close(self) -> None:
        """Let answers end, take no more, and free the models; safe to call twice."""
        self._stack.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
