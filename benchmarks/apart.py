"""Clients with secrets beside each other: each answer must be the one that its request gets alone.

    edgellm serve TARGET --draft DRAFT --parallel 4 --port 8080 &
    python benchmarks/apart.py --url http://127.0.0.1:8080 [--clients 6] [--requests 200] [--seed 0]

Every client has a secret of its own in a conversation that begins like the others', and asks for it, greedily or with a
seed, whole or as a stream; a third of the requests are cancelled at a random moment. Answers beside others are compared
with those that were given alone before, what a cancelled one had got with the beginning of it, and no answer may hold
another client's secret. Exit status 1 where one differs. Only a server of this machine is asked.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SYSTEM = "You keep a secret word for the user and answer briefly. The user's secret word is {}. Repeat it when asked. "
QUESTIONS = (
    "What is my secret word?",
    "Write my secret word three times, with commas.",
    "Tell a short story about my secret word.",
    "Spell my secret word letter by letter.",
    "Write a Python function that prints my secret word.",
)
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    client: int
    question: str
    settings: tuple[tuple[str, Any], ...]
    secret: str

    def body(self, *, stream: bool) -> bytes:
        messages = [
            {"role": "system", "content": SYSTEM.format(self.secret)},
            {"role": "user", "content": self.question},
        ]
        return json.dumps({"messages": messages, "stream": stream, **dict(self.settings)}).encode()


def asks_of(n_clients: int, rng: random.Random) -> list[Ask]:
    """What each client asks, in every way."""
    secrets = [
        "".join(rng.choices("bcdfghjklmnpqrstvwxz", k=4)) + str(rng.randrange(1000, 9999)) for _ in range(n_clients)
    ]
    made = []
    for client, secret in enumerate(secrets):
        for i, question in enumerate(QUESTIONS):
            for sampling in ({"temperature": 0}, {"temperature": 0.8, "seed": 100 * client + i}):
                made.append(Ask(client, question, tuple({"max_tokens": 48, **sampling}.items()), secret))
    return made


class Target:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.hostname not in ("127.0.0.1", "localhost", "::1") or parts.port is None:
            sys.exit("only a server of this machine is asked: give --url http://127.0.0.1:PORT")
        self._place = parts.hostname, parts.port

    def ask(self, ask: Ask, *, stream: bool, leave_s: float | None = None) -> tuple[str, bool]:
        """The text that came, and whether it is whole; the client leaves after `leave_s`."""
        connection = http.client.HTTPConnection(*self._place, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/v1/chat/completions", ask.body(stream=stream))
            if leave_s is not None and not stream:
                time.sleep(leave_s)
                return "", False
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {response.read()[:200]!r}")
            if not stream:
                return str(json.loads(response.read())["choices"][0]["message"]["content"]), True
            return self._pieces(response, None if leave_s is None else time.monotonic() + leave_s)
        finally:
            connection.close()

    def _pieces(self, response: http.client.HTTPResponse, ends: float | None) -> tuple[str, bool]:
        text = ""
        for line in response:
            if ends is not None and time.monotonic() > ends:
                return text, False
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
            elif line.startswith(b"data: [DONE]"):
                return text, True
        raise RuntimeError("a stream ended without [DONE]")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, target = random.Random(args.seed), Target(args.url)
    asks = asks_of(args.clients, rng)
    began = time.monotonic()
    alone = {ask: target.ask(ask, stream=False)[0] for ask in asks}
    print(
        f"{len(asks)} requests alone in {time.monotonic() - began:.0f} s, {len(set(alone.values()))} different answers"
    )
    secrets = {ask.client: ask.secret for ask in asks}
    faults: list[str] = []
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def one(drawn: tuple[Ask, bool, float | None]) -> None:
        ask, stream, leave_s = drawn
        text, is_whole = target.ask(ask, stream=stream, leave_s=leave_s)
        others = [secret for client, secret in secrets.items() if client != ask.client and secret in text]
        wanted = alone[ask] if is_whole else alone[ask][: len(text)]
        with lock:
            counts["whole" if is_whole else "left"] += 1
            counts["with its own secret"] += ask.secret in text
            if text != wanted:
                faults.append(f"client {ask.client}, {ask.question!r}: {text!r} instead of {wanted!r}")
            if others:
                faults.append(f"client {ask.client} was told {others}: {text!r}")

    drawn = [(rng.choice(asks), rng.random() < 0.6, rng.random() * 4 if rng.random() < 1 / 3 else None)
             for _ in range(args.requests)]  # fmt: skip
    began = time.monotonic()
    with ThreadPoolExecutor(args.clients) as pool:
        list(pool.map(one, drawn))
    print(
        f"{args.requests} requests of {args.clients} clients at once in {time.monotonic() - began:.0f} s:", dict(counts)
    )
    for fault in faults[:20]:
        print("FAULT:", fault)
    print(f"{len(faults)} faults" if faults else "no fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
