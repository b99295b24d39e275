"""Hostile clients of a running server: it refuses in sentences, keeps nothing, and answers as before.

    edgellm serve MODEL --parallel 3 --port 8080 2>server.log &
    python benchmarks/hostile.py --url http://127.0.0.1:8080 --pid $! [--requests 10000] [--cancels 1000] [--seed 0]

Requests are drawn at random, each by the seed and its number, so that one can be sent again alone (`--only NUMBER`).
Then the server must say that it is well, answer known questions as it did, and with --pid (on Linux) have grown by less
than 2 %, hold no further file or thread, and have written no trace of a failure to the file that its standard error
goes to. An answer of status 500 or of an unknown form is a failure too. Exit status 1 where anything failed. Only a
server of this machine is asked.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import random
import re
import socket
import struct
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hostile_requests import Attack, Maker

PATIENCE_S = 15.0  # then a client hangs up
PATIENCE_SOUND_S = 120.0  # of one that has a right to an answer
SETTLING_S = 90.0
MAX_GROWTH = 0.02
# The last event of a stream: of chats and completions, of messages, of responses.
LAST = re.compile(rb"data: \[DONE\]\s*(0\s*)?\Z|event: (message_stop|response\.(completed|incomplete))\n")
QUESTIONS = ("Name three colours.", "Write a Python function that adds two numbers.", "What is the capital of France?")


@dataclass(slots=True)
class Tally:
    """What came of all of them."""

    statuses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def patience_s(attack: Attack) -> float:
    if attack.leave_s is not None:
        return attack.leave_s + attack.pause_s * len(attack.parts)
    return PATIENCE_SOUND_S if attack.is_sound else PATIENCE_S


def carry_out(attack: Attack, address: tuple[str, int]) -> bytes | None:
    """What came back; None where the client left, or was hung up on, before the answer was whole."""
    sock = socket.create_connection(address, timeout=PATIENCE_S)
    ends = time.monotonic() + patience_s(attack)
    try:
        for part in attack.parts:
            sock.sendall(part)
            time.sleep(attack.pause_s)
        if attack.is_half:
            sock.shutdown(socket.SHUT_WR)
        return read_until(sock, ends)
    except OSError:  # hung up on while it wrote
        return None
    finally:
        if attack.is_rude:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


def read_until(sock: socket.socket, ends: float) -> bytes | None:
    data = bytearray()
    while (left_s := ends - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            got = sock.recv(65536)
        except TimeoutError:
            return None
        if not got:
            return bytes(data)
        data += got
    return None


def judge(attack: Attack, data: bytes | None) -> tuple[str, str]:
    """Its status, and what is wrong with it; "" where nothing is."""
    if data is None:
        return "left", "was not answered in time" if attack.is_sound else ""
    if not data:
        return "hung up", "was not answered" if attack.is_sound else ""
    if data.count(b"HTTP/1.1 ") > 1 and attack.kind in ("pipelined", "garbage"):
        return "several", "" if data.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4")) else "the first was not answered"
    top, _, body = data.partition(b"\r\n\r\n")
    if not top.startswith(b"HTTP/1.1 ") or not top[9:12].isdigit():
        return "no HTTP", f"answered {top[:60]!r}"
    status = top[9:12].decode()
    if status == "100":
        return judge(attack, body)
    if status >= "500" and status != "503":
        return status, f"answered {body[:200]!r}"
    if attack.is_sound and status not in ("200", "429", "503"):
        return status, f"is sound and was answered {body[:200]!r}"
    if status == "200" and b"text/event-stream" in top and not LAST.search(body[-2_000_000:]):
        if attack.is_half:  # whose end of sending the server took for its leaving
            return "left", ""
        return status, f"a stream ended in {body[-80:]!r}"
    if status >= "400" and body and b"application/json" in top:
        return status, "" if is_error(body) else f"an error of another form: {body[:200]!r}"
    return status, ""


def is_error(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["error"]["message"], str)
    except (ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    resident_bytes: int
    n_files: int
    n_sockets: int
    n_threads: int


def held_by(pid: int) -> Held:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    links: list[str] = []
    for one in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(f"/proc/{pid}/fd/{one}"))
    n_sockets = sum(link.startswith("socket:") for link in links)
    return Held(int(status["VmRSS"].split()[0]) * 1024, len(links), n_sockets, int(status["Threads"]))


class Target:
    """The server that is asked."""

    def __init__(self, url: str, pid: int | None) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if (
            not (host == "localhost" or (host[:1].isdigit() and ipaddress.ip_address(host).is_loopback))
            or not parts.port
        ):
            sys.exit("only a server of this machine is asked: give --url http://127.0.0.1:PORT")
        self.url, self.pid, self.address = f"http://{host}:{parts.port}", pid, (host, parts.port)
        meta = self.get("/v1/models")["data"][0]["meta"]
        self.n_ctx, self.n_parallel = int(meta["n_ctx"]), int(meta["n_parallel"])
        log = Path(f"/proc/{pid}/fd/2").resolve() if pid is not None else None
        self._log = log if log is not None and log.is_file() else None
        self._n_logged = self._log.stat().st_size if self._log is not None else 0

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            data = response.read()
        return json.loads(data) if response.headers["content-type"].startswith("application/json") else data.decode()

    def ask(self, question: str, n_tokens: int = 24) -> str:
        body = {"messages": [{"role": "user", "content": question}], "max_tokens": n_tokens, "temperature": 0}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=300) as response:
            return str(json.loads(response.read())["choices"][0]["message"]["content"])

    def answers(self) -> list[str]:
        return [self.ask(question) for question in QUESTIONS]

    def fill(self) -> None:
        """Let every conversation reach the end of its context once, so that what is kept for them is in memory."""
        words = ["word " * (self.n_ctx * 9 // 10 - 40) + str(i) for i in range(self.n_parallel)]
        with ThreadPoolExecutor(self.n_parallel) as pool:
            list(pool.map(lambda text: self.ask(text, 8), words))

    def settle(self) -> bool:
        """Wait until nobody is answered or waits."""
        ends = time.monotonic() + SETTLING_S
        while time.monotonic() < ends:
            text = self.get("/metrics")
            if "edgellm_requests_running 0\n" in text and "edgellm_requests_queued 0\n" in text:
                return True
            time.sleep(0.5)
        return False

    def logged(self) -> list[str]:
        if self._log is None:
            return []
        with self._log.open("rb") as file:
            file.seek(self._n_logged)
            return file.read().decode("utf-8", "replace").splitlines()


def attack_all(target: Target, makers: list[tuple[str, Callable[[], Attack]]], n_clients: int) -> Tally:
    """All of them, some at once."""
    tally, lock = Tally(), threading.Lock()

    def one(named: tuple[str, Callable[[], Attack]]) -> None:
        name, make = named
        attack = make()
        began = time.monotonic()
        try:
            status, fault = judge(attack, carry_out(attack, target.address))
        except OSError as error:
            status, fault = "failed", f"could not be sent: {error}"
        with lock:
            tally.kinds[attack.kind] += 1
            tally.statuses[status] += 1
            if fault:
                tally.faults.append(f"request {name}, {attack.kind}, {time.monotonic() - began:.1f} s: {fault}")

    with ThreadPoolExecutor(n_clients) as pool:
        list(pool.map(one, makers))
    return tally


def watched(target: Target, work: Callable[[], Tally]) -> tuple[Tally, float]:
    """What `work` comes to, and the longest that /health took meanwhile."""
    longest_s, is_over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest_s
        while not is_over.wait(0.5):
            began = time.monotonic()
            with contextlib.suppress(OSError):
                target.get("/health")
            longest_s = max(longest_s, time.monotonic() - began)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return work(), longest_s
    finally:
        is_over.set()
        thread.join()


def compare(target: Target, before: Held) -> list[str]:
    """What the process holds now that it did not hold before."""
    assert target.pid is not None
    ends = time.monotonic() + SETTLING_S
    while (now := held_by(target.pid)).n_files > before.n_files and time.monotonic() < ends:
        time.sleep(1)
    growth = now.resident_bytes / before.resident_bytes - 1
    print(
        f"resident {before.resident_bytes / 2**20:.1f} -> {now.resident_bytes / 2**20:.1f} MiB ({growth:+.2%}), "
        f"sockets {before.n_sockets} -> {now.n_sockets}, files {before.n_files} -> {now.n_files}, "
        f"threads {before.n_threads} -> {now.n_threads}"
    )
    faults = [f"resident memory grew by {growth:.2%}"] if growth >= MAX_GROWTH else []
    faults += [f"{now.n_files - before.n_files} files or sockets stayed open"] if now.n_files > before.n_files else []
    return faults + ([f"{now.n_threads - before.n_threads} threads stayed"] if now.n_threads > before.n_threads else [])


def check_log(target: Target) -> list[str]:
    """Of a failure there may be one line, and no trace."""
    lines = target.logged()
    print(f"standard error: {len(lines)} lines")
    for line in list(dict.fromkeys(lines))[:10]:
        print(f"    {line[:200]}")
    traces = [line for line in lines if line.startswith((" ", "\t", "Traceback")) or not line.strip()]
    return [f"standard error holds {len(traces)} lines of a trace"] if traces else []


def makers_of(args: argparse.Namespace, n_ctx: int, seed: int, n_requests: int, n_cancels: int) -> list[Any]:
    """The requests, and the cancelled ones between them."""
    made = [(f"{i}", Maker(seed, i, n_ctx).attack) for i in range(n_requests)]
    made += [(f"c{i}", Maker(seed, -1 - i, n_ctx).cancelled) for i in range(n_cancels)]
    random.Random(seed).shuffle(made)
    return [one for one in made if args.only in (None, one[0])]


def told(faults: Sequence[str]) -> int:
    """Print what went wrong; the exit status."""
    for fault in faults[:40]:
        print("FAULT:", fault)
    print(f"{len(faults)} faults" if faults else "no fault")
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--pid", type=int)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--cancels", type=int, default=300)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="send this request alone")
    args = parser.parse_args()
    target = Target(args.url, args.pid)
    known = target.answers()
    if args.only is None:
        target.fill()
        # What the C library keeps of the largest bodies at once is no leak, which grows with every further one.
        largest = [(f"w{i}", Maker(args.seed + 1, i, target.n_ctx).large) for i in range(40)]
        warming = [*largest, *makers_of(args, target.n_ctx, args.seed + 1, 1_000, 150)]
        attack_all(target, warming, args.clients)
        target.settle()
    before = held_by(args.pid) if args.pid is not None else None
    began = time.monotonic()
    makers = makers_of(args, target.n_ctx, args.seed, args.requests, args.cancels)
    tally, health_s = watched(target, lambda: attack_all(target, makers, args.clients))
    print(f"{len(makers)} requests in {time.monotonic() - began:.0f} s; /health took at most {health_s:.2f} s")
    print("kinds:", ", ".join(f"{name} {n}" for name, n in tally.kinds.most_common()))
    print("came to:", ", ".join(f"{name} {n}" for name, n in sorted(tally.statuses.items())))
    faults = tally.faults
    faults += [] if target.settle() else ["requests are still answered, or wait"]
    faults += [] if target.get("/health") == {"status": "ok"} else ["/health says something else"]
    faults += [] if target.answers() == known else ["a known question is answered differently"]
    faults += compare(target, before) if before is not None else []
    faults += check_log(target)
    return told(faults)


if __name__ == "__main__":
    sys.exit(main())
