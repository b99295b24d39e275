"""Servers under several clients: tokens a second, waiting times, and gaps while another request is read.

    python benchmarks/serving.py --prompts FILE [--prompts FILE] --clients 1,2,4,8 [--requests 24] [--tokens 96]
        --server NAME=http://127.0.0.1:8080/v1 [--server NAME=URL ...] --out serving.jsonl
    python benchmarks/serving.py --gaps --server NAME=URL ... [--streams 3]

All servers run at once and take turns, one of them at work at a time, so what the machine does to one it does to the
others. Requests are greedy and streamed; a token is a token of the server's own `usage`. A text that differs from the
first server's answer to the same prompt is counted. Behind first texts: tokens by the time from
first texts to ends, shared by the clients. `--gaps`: some clients are answered while another sends a prompt of
about 2,000 tokens; what is told is the longest and the 95th percentile of the time between two pieces of an answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgellm.runtime.comparison import read_prompts

WORDS = (
    "river", "stone", "lantern", "orchard", "violin", "harbour", "meadow", "copper", "thunder", "willow", "saffron",
)  # fmt: skip


@dataclass(slots=True)
class Answered:
    """What a client saw of one request. Times in seconds since it was sent."""

    text: str = ""
    n_tokens: int = 0
    at_s: list[float] = field(default_factory=list)  # of each piece
    total_s: float = 0.0


def ask(url: str, prompt: str, n_tokens: int) -> Answered:
    body = {
        "messages": [{"role": "user", "content": prompt}], "max_tokens": n_tokens, "temperature": 0,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    answered, began = Answered(), time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            chunk: dict[str, Any] = json.loads(line[6:])
            if usage := chunk.get("usage"):
                answered.n_tokens = usage["completion_tokens"]
            for choice in chunk.get("choices", []):
                if piece := choice["delta"].get("content"):
                    answered.at_s.append(time.perf_counter() - began)
                    answered.text += piece
    answered.total_s = time.perf_counter() - began
    return answered


def together(url: str, prompts: Sequence[str], n_clients: int, n_tokens: int) -> tuple[list[Answered], float]:
    """All prompts, by so many clients; with the seconds that it took."""
    found: list[Answered] = [Answered()] * len(prompts)
    waiting, lock = iter(range(len(prompts))), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                i = next(waiting, None)
            if i is None:
                return
            found[i] = ask(url, prompts[i], n_tokens)

    threads = [threading.Thread(target=client) for _ in range(n_clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, time.perf_counter() - began


def measure(arguments: argparse.Namespace) -> None:
    servers = dict(item.split("=", 1) for item in arguments.server)
    every = [p.turns[0] for path in arguments.prompts for p in read_prompts(path)]
    counts = [int(n) for n in arguments.clients.split(",")]
    # Others for each number of clients: what was asked before is cached, and its answer known.
    step = max(1, len(every) // (arguments.requests * len(counts)))
    chosen = [every[i * step :: step * len(counts)][: arguments.requests] for i in range(len(counts))]
    for url in servers.values():
        ask(url, "Say hello.", 8)
    with arguments.out.open("a") as out:
        for n_clients, prompts in zip(counts, chosen, strict=True):
            texts: list[str] = []
            for name, url in servers.items():
                found, took_s = together(url, prompts, n_clients, arguments.tokens)
                texts = texts or [answered.text for answered in found]
                decode_s = sum(a.total_s - a.at_s[0] for a in found if a.at_s) / n_clients
                waits = sorted(answered.at_s[0] for answered in found if answered.at_s)
                row = {
                    "server": name, "clients": n_clients, "tokens": sum(a.n_tokens for a in found), "seconds": took_s,
                    "tokens_per_s": sum(a.n_tokens for a in found) / took_s,
                    "behind_prompts_per_s": sum(a.n_tokens for a in found) / decode_s,
                    "stream_tokens_per_s": statistics.mean(a.n_tokens / a.total_s for a in found),
                    "first_median_s": statistics.median(waits), "first_p95_s": waits[int(0.95 * (len(waits) - 1))],
                    "same": sum(a.text == text for a, text in zip(found, texts, strict=True)),
                }  # fmt: skip
                out.write(json.dumps(row) + "\n")
                out.flush()
                print(
                    f"{name}, {n_clients} clients: {row['tokens_per_s']:.1f} tokens/s in all, "
                    f"{row['behind_prompts_per_s']:.1f} behind first texts, "
                    f"{row['stream_tokens_per_s']:.1f} a stream, first text {row['first_median_s']:.2f} s (median) "
                    f"{row['first_p95_s']:.2f} s (p95), {row['same']} of {len(found)} as the first server alone",
                    flush=True,
                )


def gaps(arguments: argparse.Namespace) -> None:
    """Between pieces of answers, while somebody else's long prompt is read."""
    for name, url in (item.split("=", 1) for item in arguments.server):
        streams: list[Answered] = []
        began = time.perf_counter()

        def stream(i: int, url: str = url, streams: list[Answered] = streams, began: float = began) -> None:
            sent = time.perf_counter() - began
            answered = ask(url, f"Write a long story about a {WORDS[i]}.", arguments.tokens)
            answered.at_s = [sent + at for at in answered.at_s]
            streams.append(answered)

        threads = [threading.Thread(target=stream, args=(i,)) for i in range(arguments.streams)]
        for thread in threads:
            thread.start()
        time.sleep(arguments.wait)
        sent = time.perf_counter() - began
        text = " ".join(WORDS[(7 * i + i // 5) % len(WORDS)] for i in range(1400))
        read = ask(url, f"{text}\n\nSay only: done.", 2)
        until = sent + read.at_s[0]
        for thread in threads:
            thread.join()
        found = {
            when: sorted(b - a for s in streams for a, b in pairwise(s.at_s) if (sent < b < until) == when)
            for when in (True, False)
        }
        quiet, during = found[False], found[True]
        print(
            f"{name}: prompt read in {read.at_s[0]:.1f} s; between pieces meanwhile median "
            f"{statistics.median(during):.3f}, p95 {during[int(0.95 * (len(during) - 1))]:.3f}, "
            f"longest {during[-1]:.3f} s; otherwise median {statistics.median(quiet):.3f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--prompts", type=Path, action="append", default=[])
    parser.add_argument("--clients", default="1,2,4,8")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--gaps", action="store_true")
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--wait", type=float, default=3.0, help="seconds before the long prompt is sent")
    parser.add_argument("--out", type=Path, default=Path("serving.jsonl"))
    arguments = parser.parse_args()
    if arguments.gaps:
        return gaps(arguments)
    measure(arguments)


if __name__ == "__main__":
    main()
