"""Workers as on machines of their own, for `workers.py`: namespaces of the network, and relays that delay."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_PORT = 50052
_NET = f"10.{64 + os.getpid() % 128}"  # so that two runs do not share one


class DelayingRelay:
    """A port of the loopback whose every byte arrives `delay_s` later at the other end, in both directions."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target, self.delay_s = target, 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(self.target, 2.0)
            except OSError:
                near.close()
                continue
            for sock in (near, far):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        waiting: queue.Queue[tuple[float, bytes]] = queue.Queue()

        def deliver() -> None:
            while True:
                due, data = waiting.get()
                time.sleep(max(0.0, due - time.monotonic()))
                try:
                    if not data:
                        return sink.shutdown(socket.SHUT_WR)
                    sink.sendall(data)
                except OSError:
                    return

        threading.Thread(target=deliver, daemon=True).start()
        while True:
            try:
                data = source.recv(2**18)
            except OSError:
                data = b""
            waiting.put((time.monotonic() + self.delay_s, data))
            if not data:
                return


@dataclass(slots=True)
class Worker:
    """`edgellm worker`, in a namespace where that is permitted."""

    i: int
    mem: str
    threads: int
    namespaces: bool
    cores: str = ""  # that it may use, as `taskset` names them; "": all
    process: subprocess.Popen[bytes] | None = None
    log: Path = Path()

    @property
    def host(self) -> str:
        return f"{_NET}.{self.i}.2" if self.namespaces else "127.0.0.1"

    @property
    def port(self) -> int:
        return _PORT if self.namespaces else _PORT + 100 + self.i

    def start(self) -> None:
        inside = ["ip", "netns", "exec", f"edgellm{os.getpid()}x{self.i}"] if self.namespaces else []
        self.log = Path(tempfile.mkstemp(suffix=".worker")[1])
        words = ["--host", self.host, "--port", str(self.port), "--mem", self.mem, "--threads", str(self.threads)]
        pinned = ["taskset", "-c", self.cores] if self.cores else []
        command = [*inside, *pinned, sys.executable, "-m", "edgellm.cli", "worker", *words]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        while "lending" not in (said := self.log.read_text()):
            if self.process is None or self.process.poll() is not None:
                raise SystemExit(f"worker {self.i} did not start: {said}")
            time.sleep(0.1)

    def parts(self) -> list[psutil.Process]:
        """Its front and its engine."""
        assert self.process is not None
        try:
            front = psutil.Process(self.process.pid)
            return [front, *front.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def peak_bytes(self) -> int:
        """Of its engine, resident, at most so far."""
        peaks = [re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{part.pid}/status").read_text()) for part in self.parts()]
        return max(int(peak.group(1)) * 1024 for peak in peaks if peak)

    def end(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def namespaces(n: int) -> Iterator[bool]:
    """So many, each with a link to here; False where they are not permitted."""
    made = []
    try:
        for i in range(n):
            name, near, far = f"edgellm{os.getpid()}x{i}", f"edge{os.getpid()}x{i}", f"far{i}"
            commands = [
                f"ip netns add {name}",
                f"ip link add {near} type veth peer name {far} netns {name}",
                f"ip addr add {_NET}.{i}.1/24 dev {near}",
                f"ip link set {near} up",
                f"ip netns exec {name} ip addr add {_NET}.{i}.2/24 dev {far}",
                f"ip netns exec {name} ip link set {far} up",
                f"ip netns exec {name} ip link set lo up",
            ]
            made.append(name)
            for command in commands:
                done = subprocess.run(command.split(), capture_output=True, text=True)
                if done.returncode:
                    print(f"no namespaces here ({done.stderr.strip()}): on the loopback")
                    yield False
                    return
        yield True
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
