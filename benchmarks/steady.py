"""Ordinary small requests, many: what a server holds after a day of them.

    edgellm serve MODEL --parallel 4 --port 8080 &
    python benchmarks/steady.py --url http://127.0.0.1:8080 --pid $! [--requests 5000] [--every 500] [--seed 0]

Chats, completions, responses, messages, embeddings and tokens, whole and streamed, some held to a schema or a call; all
must be answered. Every so many requests a line tells what the process holds (on Linux). Nothing is warmed up before, so
that the first lines tell what a fresh server still takes. Exit status 1 where a request was not answered. Only a server
of this machine is asked.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from hostile import Target, attack_all, held_by, told
from hostile_requests import Attack, Maker, dump, post


def ordinary(maker: Maker) -> Attack:
    """A request that must be answered."""
    path, body = maker.sound_body()
    if path.endswith("/chat/completions"):
        body |= {**maker.held(), "max_tokens": maker.rng.randrange(4, 40)}
        if body.get("tools") or body.get("response_format"):
            body.pop("stop", None)
    return Attack("ordinary", [post(path, dump(body))], is_sound=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    target = Target(args.url, args.pid)
    known, began = target.answers(), time.monotonic()
    faults: list[str] = []
    for first in range(0, args.requests, args.every):
        numbers = range(first, min(first + args.every, args.requests))
        makers: list[Any] = [(str(i), lambda i=i: ordinary(Maker(args.seed, i, target.n_ctx))) for i in numbers]
        tally = attack_all(target, makers, args.clients)
        target.settle()
        held = held_by(args.pid)
        faults += tally.faults
        print(
            f"{numbers[-1] + 1:6} requests, {time.monotonic() - began:5.0f} s: {held.resident_bytes / 2**20:7.1f} MiB, "
            f"{held.n_files} files, {held.n_sockets} sockets, {held.n_threads} threads, {json.dumps(tally.statuses)}",
            flush=True,
        )
    faults += [] if target.answers() == known else ["a known question is answered differently"]
    return told(faults)


if __name__ == "__main__":
    sys.exit(main())
