"""llama.cpp's RPC server in a child process on the loopback, started again when it ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from edgellm.memory.children import Child, ChildFailed, Send, serve
from edgellm.memory.device import this_machine
from edgellm.memory.heap import return_large_blocks
from edgellm.runtime.workers.survey import Facts, WorkerError

_MODULE = "edgellm.runtime.workers.server"
_START_S = 180.0  # the first on a machine tries what its library can do
_AGAIN_S = (0.0, 1.0, 5.0, 30.0)  # before each start after one that ended early; the last is for all that follow
_EARLY_S = 30.0


class RpcServer:
    """The child. `facts` are what it said of itself when it was started last."""

    def __init__(self, *, n_threads: int, device: str) -> None:
        """
        Args:
            device: as `edgellm devices --here` names it; "cpu": the processor; "auto": a GPU where there is one.

        Raises:
            WorkerError: it cannot be started; the message says why and what to do.
        """
        self._asked = {"n_threads": n_threads, "device": device}
        self.facts = Facts("", 0, 0)
        self.port, self.n_starts = 0, 0
        self.is_up = False
        self._ended = ""
        self._n_early, self._started_s = 0, 0.0
        self._start()

    def keep_up(self, say: Callable[[str], None]) -> None:
        """Start it again where it ended; `say` is told so in a sentence."""
        if self.is_up:
            return
        if self._ended:
            early = time.monotonic() - self._started_s < _EARLY_S
            self._n_early = self._n_early + 1 if early else 0
            say(f"llama.cpp's server ended ({self._ended}); it is started again, and nothing of the session is left")
            self._ended = ""
        if time.monotonic() - self._started_s < _AGAIN_S[min(self._n_early, len(_AGAIN_S) - 1)]:
            return
        try:
            self._start()
        except WorkerError as error:
            self._n_early, self._started_s = self._n_early + 1, time.monotonic()
            say(str(error))

    @property
    def resident_bytes(self) -> int:
        """Of the child, as the system counts it."""
        try:
            return int(psutil.Process(self._child.pid).memory_info().rss)
        except psutil.Error:
            return 0

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def cpu_s(self) -> float:
        """Seconds of the processor that the child has taken."""
        try:
            times = psutil.Process(self._child.pid).cpu_times()
        except psutil.Error:
            return -1.0
        return float(times.user + times.system)

    def end_child(self) -> None:
        """End it; `keep_up` starts another."""
        self._child.end()

    def close(self) -> None:
        self.is_up = False
        self._child.end()

    def _start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._started_s = time.monotonic()
        child = self._child = Child(_MODULE, {**self._asked, "port": self.port})
        ready = threading.Event()
        threading.Thread(target=self._heed, args=(child, ready), daemon=True).start()
        if not ready.wait(_START_S) or not self.is_up:
            child.end()
            why, self._ended = self._ended or f"it does not start within {_START_S:.0f} s", ""
            raise WorkerError(why)
        self.n_starts += 1

    def _heed(self, child: Child, ready: threading.Event) -> None:
        why = "it ended by itself"
        try:
            for answer in child.answers():
                self.facts = Facts(**{**answer["facts"], "protocol": tuple(answer["facts"]["protocol"])})
                if not self._listens():
                    why = "it does not listen"
                    break
                self.is_up = True
                ready.set()
        except ChildFailed as error:
            why = str(error)
        except (OSError, ValueError):  # its pipes were closed: we ended it
            why = ""
        if self._child is child:
            self.is_up, self._ended = False, why
        ready.set()

    def _listens(self) -> bool:
        """Whether it takes connections, after a moment."""
        ends = time.monotonic() + _START_S
        while time.monotonic() < ends:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                time.sleep(0.05)
            else:
                return True
        return False


# ---- the child -------------------------------------------------------------------------------------------------------


def _run(asked: Mapping[str, Any], send: Send) -> None:
    from llama_cpp import llama_cpp as api

    from edgellm.memory.placement import chosen
    from edgellm.runtime.backends import llama_rpc
    from edgellm.runtime.backends.llama_process import accelerators, kernels
    from edgellm.runtime.kernels.load import lend_memory

    if why := llama_rpc.missing(api):
        raise WorkerError(why)
    return_large_blocks()  # sessions come and go
    report, here = kernels(), this_machine()
    device = chosen(str(asked["device"]), accelerators())
    lends = device is None and report.active and lend_memory()
    facts = {
        "device": device.description if device else here.description.partition(",")[0],
        "free_bytes": device.free_bytes if device else here.usable_bytes,
        "total_bytes": device.total_bytes if device else here.total_bytes,
        "protocol": llama_rpc.PROTOCOL,
        "edgellm": llama_rpc.own_version(),
        "engine": llama_rpc.engine_version(api),
        "kernels": report.variant if lends else "",
        "bandwidth_bytes_s": 0.0 if device else here.bandwidth_bytes_s,
        "macs_s": 0.0 if device else here.macs_s,
    }
    send({"facts": facts})
    llama_rpc.serve(api, f"127.0.0.1:{asked['port']}", int(asked["n_threads"]), device.name if device else "CPU")
    raise WorkerError("llama.cpp's server could not listen on the loopback")


if __name__ == "__main__":
    from edgellm.memory.errors import EdgellmError

    serve(_run, EdgellmError)
