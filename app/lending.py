"""What a worker lends, and its front."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import psutil

from edgellm.app.defaults import BadSetting, asked_bytes
from edgellm.memory.units import MIB, format_bytes

if TYPE_CHECKING:
    from edgellm.runtime.workers.serving import Front

SLACK_BYTES = 64 * MIB  # of a worker: what it is sent before it lies in its place, descriptions of passes, scratch


@contextlib.contextmanager
def lend(
    host: str, port: int, *, mem: str | None, n_threads: int | None, device: str, say: Callable[[str], None]
) -> Iterator[Front]:
    """A worker's front, whose `run` serves.

    Args:
        mem: most memory of the worker, its programs included; what is free if None. Of a GPU, of its own memory.
        say: is told a sentence of whatever happens.

    Raises:
        WorkerError: llama.cpp's server cannot be started here.
        BadSetting: so little memory that nothing can be lent.
        OSError: the port is taken.
    """
    from edgellm.memory.cpu import usable_cores
    from edgellm.runtime.workers.server import RpcServer
    from edgellm.runtime.workers.serving import Front

    asked = asked_bytes(mem)
    server = RpcServer(n_threads=n_threads or usable_cores(), device=device)
    try:
        taken = SLACK_BYTES + psutil.Process().memory_info().rss + server.resident_bytes
        most = server.facts.free_bytes if asked is None else min(asked, server.facts.free_bytes + taken)
        if most <= taken:
            raise BadSetting(
                f"a worker takes {format_bytes(taken)} before it lends anything, and has {format_bytes(most)}: give it "
                "more with --mem, or end other programs"
            )
        yield Front(server, host, port, most - taken, say)
    finally:
        server.close()
