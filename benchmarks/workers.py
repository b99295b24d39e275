"""Layers on other machines: the same text, tokens a second plain and drafted, memory against the plan, and kills.

    python benchmarks/workers.py speed TARGET.gguf DRAFTER.gguf [--workers 2,3] [--delays 0,1,10,50] [--tokens 48]
    python benchmarks/workers.py kills TARGET.gguf [--kills 50]

Each worker is `edgellm worker` in a network namespace of its own (root and iproute2; without them, on the loopback). A
relay of this program on the way delays each direction by so many milliseconds: what `tc netem` does, where the kernel
has it not. Plain and drafted answers take turns in one process. A text is compared with what this machine alone writes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import signal
import statistics
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from machines import DelayingRelay, Worker, namespaces

from edgellm.app.benchmark import PROMPTS
from edgellm.memory.units import MIB
from edgellm.runtime.backends.base import EngineError, LayersLost
from edgellm.runtime.bringup.load import load
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.conversation import ChatSession
from edgellm.runtime.engine import Engine
from edgellm.runtime.workers.link import link_of
from edgellm.runtime.workers.survey import WorkerError


@dataclass(slots=True)
class Figures:
    plain_s: float = 0.0
    drafted_s: float = 0.0
    n_plain: int = 0
    n_drafted: int = 0
    n_other: int = 0  # texts that differ from this machine's alone

    def line(self) -> str:
        plain, drafted = self.n_plain / self.plain_s, self.n_drafted / self.drafted_s
        return f"plain {plain:6.2f} tok/s  drafted {drafted:6.2f} tok/s  x {drafted / plain:.2f}  other {self.n_other}"


def answer(engine: Engine, prompt: str, n_tokens: int, n_draft: int | None) -> tuple[str, int, float]:
    generation = engine.generate(prompt, max_tokens=n_tokens, n_draft=n_draft)
    whole = generation.finish()
    return whole.text, len(whole.tokens), whole.stats.decode_s


def measure(engine: Engine, prompts: list[str], n_tokens: int, texts: dict[str, str]) -> Figures:
    figures = Figures()
    for prompt in prompts:
        for n_draft in (0, None):
            text, n, took_s = answer(engine, prompt, n_tokens, n_draft)
            figures.n_other += texts.setdefault(prompt, text) != text
            if n_draft == 0:
                figures.n_plain, figures.plain_s = figures.n_plain + n, figures.plain_s + took_s
            else:
                figures.n_drafted, figures.drafted_s = figures.n_drafted + n, figures.drafted_s + took_s
    return figures


def speed(asked: argparse.Namespace) -> None:
    if asked.apart:  # a worker computes while no other does, so that one core is all of theirs
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {0})
    texts: dict[str, str] = {}
    prompts = [text for _, text in PROMPTS][: asked.prompts]
    base = EngineOptions(
        n_ctx=1024,
        learn="off",
        main_device="cpu",
        draft_device="cpu",
        n_threads=asked.threads,
        assume_cost=asked.cost,
    )
    with load(asked.target, asked.drafter, base) as engine:
        n_layers = engine.model.header.metadata[f"{engine.model.architecture}.block_count"]
        print("alone:", measure(engine, prompts, asked.tokens, texts).line(), flush=True)
    most = max(asked.workers)
    with namespaces(most) as apart:
        for n in asked.workers:
            lent = f"{asked.lend_bytes // n // MIB} MiB"
            workers = [Worker(i, lent, asked.threads, apart, "0" if asked.apart else "") for i in range(n)]
            try:
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.wait()
                _over(workers, asked, base, prompts, texts, n_layers)
            finally:
                for worker in workers:
                    worker.end()


def _over(
    workers: list[Worker],
    asked: argparse.Namespace,
    base: EngineOptions,
    prompts: list[str],
    texts: dict[str, str],
    n_layers: int,
) -> None:
    begun = {worker.i: worker.peak_bytes() for worker in workers}
    relays = [DelayingRelay((worker.host, worker.port)) for worker in workers]
    addresses = tuple(relay.address for relay in relays)
    for delay_ms in asked.delays:
        for relay in relays:
            relay.delay_s = delay_ms / 1000
            if (link := link_of(relay.address)) is not None:
                link.close()  # so that the way is measured again
        options = replace(base, workers=addresses, n_gpu_layers=n_layers - asked.keep)
        with load(asked.target, asked.drafter, options) as engine:
            assert engine.plan is not None
            placed, said = engine.settings.target.placed, engine.plan.tokens_per_s
            links = [link for link in map(link_of, addresses) if link is not None]
            before = [(link.n_sent_bytes + link.n_received_bytes, link.n_round_trips) for link in links]
            figures = measure(engine, prompts, asked.tokens, texts)
            moved = [
                link.n_sent_bytes + link.n_received_bytes - was for link, (was, _) in zip(links, before, strict=True)
            ]
            trip = statistics.mean(link.survey.round_trip_s for link in links)
            if engine.controller is not None:
                print(f"    {engine.controller.explain()}")
            print(f"{len(workers)} workers, {delay_ms:g} ms each way (round trip {1000 * trip:.1f} ms), "
                  f"layers {[n for _, n in placed]}: {figures.line()}", flush=True)  # fmt: skip
            if said is not None:
                kib = sum(moved) / (figures.n_plain + figures.n_drafted) / 1024
                print(
                    f"    planned: plain {said.plain:.2f}, drafted {said.value:.2f} tok/s; {kib:.0f} KiB a token moved"
                )
            for worker, address in zip(workers, addresses, strict=True):
                took, planned = worker.peak_bytes() - begun[worker.i], engine.plan.device_bytes(address)
                print(
                    f"    worker {worker.i}: {took / MIB:.0f} MiB where {planned / MIB:.0f} MiB were planned",
                    flush=True,
                )


def kills(asked: argparse.Namespace) -> None:
    """Kill workers at random moments of answers; the talk goes on."""
    rng = random.Random(0)
    options = EngineOptions(n_ctx=1024, learn="off", main_device="cpu", draft_device="cpu", n_threads=asked.threads)
    waited: list[float] = []
    sentences: dict[str, int] = {}
    with namespaces(2) as apart:
        workers = [Worker(i, asked.mem, asked.threads, apart) for i in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait()
        addresses = tuple(f"{worker.host}:{worker.port}" for worker in workers)
        options = replace(options, workers=addresses, n_gpu_layers=asked.layers)
        try:
            session = ChatSession(load(asked.target, None, options))
            print(f"layers: {session.engine.settings.target.placed}", flush=True)
            for i in range(asked.kills):
                held = {address for address, _ in session.engine.settings.target.placed}
                victim = rng.choice([one for one in workers if f"{one.host}:{one.port}" in held])
                whole = i % 2 == 0
                waited.append(_kill_once(session, victim, whole, rng, sentences))
                print(f"{i}: {'machine' if whole else 'engine'} {waited[-1]:.2f} s", flush=True)
                if whole:
                    victim.start()
                    victim.wait()
                session.engine.close()
                session.engine = _again(asked.target, options)
                if len(session.messages) > 6:
                    del session.messages[:-2]
            for piece in session.reply("And what is two and two?", max_tokens=8):
                print(piece, end="")
            session.engine.close()
        finally:
            for worker in workers:
                worker.end()
    print(f"\n{asked.kills} kills: from the kill to the sentence {statistics.median(waited):.2f} s median, "
          f"{max(waited):.2f} s at most; {sum(sentences.values())} ended with one sentence:")  # fmt: skip
    for sentence, n in sentences.items():
        print(f"    {n} x {sentence}")


def _kill_once(
    session: ChatSession, victim: Worker, whole: bool, rng: random.Random, sentences: dict[str, int]
) -> float:
    """Seconds from the kill to the end of the answer."""
    before, at = list(session.messages), 0.0

    def kill() -> None:
        nonlocal at
        at = time.monotonic()
        if whole:  # front and engine, as where the machine goes down
            victim.end()
        else:
            for part in victim.parts()[1:]:
                part.kill()

    timer = threading.Timer(rng.uniform(0.05, 3.0), kill)
    timer.start()
    try:
        for n in itertools.count():
            try:
                for _ in session.reply(f"Question {n}: tell me about the number {n}.", max_tokens=200):
                    pass
            except LayersLost as error:
                took = time.monotonic() - at
                sentence = re.sub(r"\d+\.\d+\.\d+\.\d+:\d+", "HOST:PORT", str(error))
                sentences[sentence] = sentences.get(sentence, 0) + 1
                assert session.messages[: len(before)] == before, "the conversation was not kept"
                return took
            except EngineError as error:
                if "context" not in str(error):
                    raise
                session.clear()
                before = []
    finally:
        timer.cancel()
    raise AssertionError


def _again(target: Path, options: EngineOptions) -> Engine:
    """As `chat` does; a worker may need a moment until it is back."""
    ends = time.monotonic() + 120
    while True:
        try:
            return load(target, None, options)
        except WorkerError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.5)


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    fast = what.add_parser("speed")
    fast.add_argument("target", type=Path)
    fast.add_argument("drafter", type=Path)
    fast.add_argument("--workers", type=numbers, default=[2, 3])
    fast.add_argument("--delays", type=lambda text: [float(word) for word in text.split(",")], default=[0, 1, 10, 50])
    fast.add_argument("--tokens", type=int, default=48)
    fast.add_argument("--prompts", type=int, default=3)
    fast.add_argument("--threads", type=int, default=2)
    fast.add_argument("--keep", type=int, default=4, help="layers that stay here")
    fast.add_argument("--lend-bytes", type=int, default=1300 * MIB, help="of all workers")
    fast.add_argument(
        "--apart", action="store_true", help="workers on the first core alone, this machine on the others"
    )
    fast.add_argument("--cost", type=float, help="as `chat --assume-cost`")
    fast.set_defaults(run=speed)
    kill = what.add_parser("kills")
    kill.add_argument("target", type=Path)
    kill.add_argument("--kills", type=int, default=50)
    kill.add_argument("--layers", type=int, default=20)
    kill.add_argument("--threads", type=int, default=1)
    kill.add_argument("--mem", default="245 MiB", help="of each of two workers, so little that layers lie on both")
    kill.set_defaults(run=kills)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and namespaces go too
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
