"""A request's body, read with bounds of size and time; and a connection watched until its client hangs up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from edgellm.server.errors import ApiError
from edgellm.server.settings import Settings

_T = TypeVar("_T")


async def read_body(request: Request, settings: Settings) -> bytes:
    """
    Raises:
        ApiError: it is too large, too slow, or compressed.
        ClientDisconnect: the client hung up.
    """
    coding = request.headers.get("content-encoding", "identity").casefold()
    if coding not in ("", "identity"):
        raise ApiError(415, "a body is taken as it is, not compressed: leave out Content-Encoding")
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > settings.max_body_bytes:
        raise _too_large(settings)
    data = bytearray()
    try:
        async with asyncio.timeout(settings.body_s):
            async for chunk in request.stream():
                data += chunk
                if len(data) > settings.max_body_bytes:
                    raise _too_large(settings)
    except TimeoutError as error:
        raise ApiError(408, f"the body did not come within {settings.body_s:g} s", headers=_CLOSE) from error
    return bytes(data)


_CLOSE = {"connection": "close"}


def _too_large(settings: Settings) -> ApiError:
    n_mib = settings.max_body_bytes / 2**20
    return ApiError(413, f"the body is larger than {n_mib:g} MiB", code="body_too_large", headers=_CLOSE)


async def unless_gone(receive: Receive, work: Coroutine[None, None, _T]) -> _T | None:
    """What `work` comes to; None where the client hung up before, which ends it."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        for one in (task, watcher):
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError, ClientDisconnect):
            await watcher
        if not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
