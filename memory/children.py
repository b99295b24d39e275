"""Jobs that run the engine, each in a process of its own.

The engine answers impossible settings with an abort and a wrong instruction with a signal; in a child neither takes the
command along, and the child's memory is given back when it ends. A module that does jobs calls `serve` in its `_main`,
and `answers` asks it: `python -m MODULE`, one JSON request in, JSON objects out.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import psutil

from edgellm.memory.errors import EdgellmError

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_MARK = b"\x1eedgellm "  # begins a line of the answer; what else comes through the pipe is none
REPORT = "report it with what `edgellm doctor` says"
SHORT_OF_MEMORY = "most often for want of memory: end other programs, or take a smaller model"
_WINDOWS_STATUS = {0xC000001D: "illegal instruction", 0xC0000005: "access violation", 0xC00000FD: "stack overflow"}


Send = Callable[[Mapping[str, Any]], None]


class ChildFailed(EdgellmError, RuntimeError):
    """A job that gave no answer.

    The message says how it ended, in the engine's own words where there are any, and what to do. `ended` is the signal
    alone: "it was ended by SIGILL (illegal instruction)"; "" where it ended by itself.
    """

    def __init__(self, message: str, ended: str = "") -> None:
        super().__init__(message)
        self.ended = ended


class Child:
    """A running `python -m module` that was asked for something. Use it as a context manager: leaving it ends it."""

    def __init__(
        self,
        module: str,
        request: Mapping[str, Any],
        *,
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            timeout_s: after which it is given up; None: never.
            environment: variables that are set for it alone.
        """
        self._talk: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._talk,
            # Otherwise an abort asks an installed debugger for a backtrace, which takes seconds.
            env={**os.environ, **(environment or {}), "GGML_NO_BACKTRACE": "1"},
        )
        self._timeout_s, self._late = timeout_s, threading.Event()
        self._watchdog = threading.Timer(timeout_s or 0.0, self._give_up) if timeout_s is not None else None
        if self._watchdog is not None:
            self._watchdog.daemon = True
            self._watchdog.start()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it may be gone already: how it ended says more
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def answers(self) -> Iterator[dict[str, Any]]:
        """What it answers, as it comes.

        Raises:
            ChildFailed: it failed, was ended by a signal, or was given up.
        """
        assert self._process.stdout is not None
        error = None
        for answer in _read(self._process.stdout):
            error = answer.get("error", error)
            if "error" not in answer:
                yield answer
        if self._process.wait() or error is not None:
            if self._late.is_set():
                raise ChildFailed(f"it did not end within {self._timeout_s:.0f} s")
            if error is not None:
                raise ChildFailed(error)
            raise ChildFailed(_last_words(self._process.returncode, self._talk), end_of(self._process.returncode))

    def ask_to_stop(self) -> None:
        """Let it keep what it has done and end, where its job heeds `stop_asked`. One that stands still goes on."""
        self.resume()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def suspend(self) -> None:
        """Let it stand still, with what it holds, until `resume`. It goes on by itself when its parent ends."""
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self._process.pid).suspend()

    def resume(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self._process.pid).resume()

    def end(self, patience_s: float | None = None) -> None:
        """End it, whatever it does. Safe to call twice.

        Args:
            patience_s: to wait at most until it is gone. One of low priority can take seconds where others want the
                cores: it does nothing any more, and its memory comes back later.
        """
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._process.kill()
        pipes: list[IO[bytes] | None] = [self._process.stdin, self._talk]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
            pipes.append(self._process.stdout)  # until it is gone, somebody may be reading
        for pipe in pipes:
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _give_up(self) -> None:
        self._late.set()
        self._process.kill()


def answers(module: str, request: Mapping[str, Any], *, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Ask `python -m module`; its answers as they come. A consumer that stops early ends the child.

    Raises:
        ChildFailed: it failed, was ended by a signal, or took longer than `timeout_s` in all.
    """
    with Child(module, request, timeout_s=timeout_s) as child:
        yield from child.answers()


def _read(pipe: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in pipe:
        if line.startswith(_MARK):
            with contextlib.suppress(ValueError):  # cut off by the child's end
                yield json.loads(line[len(_MARK) :])


def _last_words(code: int, talk: IO[bytes]) -> str:
    """How a child ended that gave no reason itself: the signal, and what was last said."""
    talk.seek(0)
    lines = [line.strip() for line in talk.read().decode("utf-8", "replace").splitlines() if line.strip()]
    said = without_folder(next((line for line in lines if "GGML_ASSERT" in line), lines[-1] if lines else ""))
    if not (ended := end_of(code)):
        return said or f"it ended with code {code} and gave no reason"
    remedy = SHORT_OF_MEMORY if ended.startswith("it was ended by SIGKILL") else REPORT
    return f"{ended}{f': {said}' if said else ''}; {remedy}"


def end_of(code: int) -> str:
    """What ended a process, from its exit code: "SIGILL (illegal instruction)"; "" where it ended by itself."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        about = (signal.strsignal(-code) or "").lower() if -code < signal.NSIG else ""
        return f"it was ended by {name}" + (f" ({about})" if about else "")
    status = _WINDOWS_STATUS.get(code)
    return f"it was ended by the system ({status})" if status else ""


def without_folder(text: str) -> str:
    """An engine's complaint without the folder that its source was compiled in: "ggml.c:4014: ..."."""
    return re.sub(r"^\S*/(?=[^/\s]+:\d+:)", "", text.strip())


# The child's side.

stop_asked = threading.Event()
"""The parent wants the job to come to an end soon, keeping what it has done."""


def serve(job: Callable[[dict[str, Any], Send], None], *failures: type[Exception]) -> None:
    """Read the request and do the job, which sends its answers. The process ends with its parent.

    Args:
        failures: whose message is the answer `error`; any other exception keeps its traceback, which ends on stderr.
    """
    # The engine, and what it starts, writes to file descriptor 1 when it likes: the pipe is moved out of its reach.
    with os.fdopen(os.dup(1), "wb", buffering=0) as pipe:
        os.dup2(2, 1)

        def send(answer: Mapping[str, Any]) -> None:
            pipe.write(_MARK + json.dumps(answer).encode() + b"\n")

        request = _read_request()
        threading.Thread(target=_heed_parent, daemon=True).start()
        try:
            job(request, send)
        except failures as error:
            send({"error": " ".join(str(error).split())})


def in_background(niceness: int = 10) -> None:
    """Let a job of minutes be one that nobody feels: called in it, before it begins.

    It gives way to every other process, leaves Ctrl-C to its parent, who hears it too, and goes on when it stands
    still while its parent ends, so that it ends as well.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, psutil.Error):
        if sys.platform == "win32":
            low, lowest = psutil.BELOW_NORMAL_PRIORITY_CLASS, psutil.IDLE_PRIORITY_CLASS
            psutil.Process().nice(lowest if niceness >= 19 else low)
        else:
            os.nice(niceness)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def _read_request() -> dict[str, Any]:
    """The line that the parent writes first; what comes behind it asks to stop."""
    parts = list[bytes]()
    while (part := os.read(0, 2**16)) and b"\n" not in part:
        parts.append(part)
    line, _, rest = part.partition(b"\n")
    if rest:
        stop_asked.set()
    request: dict[str, Any] = json.loads(b"".join([*parts, line]))
    return request


def _heed_parent() -> None:
    """A byte asks to stop; the parent's end of the pipe closes when it is gone."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            stop_asked.set()
    os._exit(1)
