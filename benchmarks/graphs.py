"""ONNX and GGUF models side by side: size, agreement with a reference, perplexity, cost of a pass, memory.

    python benchmarks/graphs.py quality REFERENCE MODEL... [--text FILE]   agreement is counted against REFERENCE
    python benchmarks/graphs.py costs MODEL...                             seconds of a pass over 1 to 16 tokens
    python benchmarks/graphs.py memory MODEL...                            predicted against measured peak
    python benchmarks/graphs.py rollback FOLDER...                         1,000 patterns against a fresh reading

Passes of all models are timed in turn, in one process, so what the machine does to one it does to the others.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.memory.context import ContextSettings
from edgellm.memory.cpu import usable_cores
from edgellm.memory.units import MIB
from edgellm.runtime.backends.base import Backend
from edgellm.runtime.backends.llama_model import ModelOptions
from edgellm.runtime.bringup.loading import needs_padding, open_context, open_model
from edgellm.runtime.bringup.planning import EngineOptions, plan_here

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
N_WINDOW, N_TOKENS, N_PAST = 256, 2000, 128
N_PATTERNS = 1000
MEMORY_SETTINGS = ((512, 128), (1024, 64), (1024, 128), (2048, 128))  # (context, batch)


def opened(path: Path, n_ctx: int, max_outputs: int, n_ubatch: int = 128) -> Any:
    model = open_model(path, ModelOptions(mmap=False))
    settings = ContextSettings(n_ctx, n_ubatch, max_outputs, n_threads=usable_cores())
    pad_single = needs_padding(model, exact=False)
    return open_context(model, settings, pad_single=pad_single, stop_asked=threading.Event())


def n_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("model.onnx*")) if path.is_dir() else path.stat().st_size


def quality(reference: Path, paths: list[Path], text: bytes) -> None:
    chosen: list[np.ndarray[Any, np.dtype[np.int64]]] = []  # by the reference, a window each
    print("| model | MB | top-1 | perplexity |\n|---|---|---|---|")
    for path in dict.fromkeys([reference, *paths]):
        top1, perplexity = judged(path, chosen, text)
        print(f"| {path.stem} | {n_bytes(path) / 1e6:.0f} | {top1:.4f} | {perplexity:.3f} |", flush=True)


def costs(paths: list[Path], n_rounds: int) -> None:
    backends = {path: opened(path, 512, max(WIDTHS)) for path in paths}
    tokens = [int(token) for token in np.random.default_rng(0).integers(0, 20_000, 512)]
    times: dict[tuple[Path, int], list[float]] = {}
    for _ in range(n_rounds):
        for path, backend in backends.items():
            backend.truncate(0)
            started = time.perf_counter()
            backend.forward(tokens[:N_PAST], n_outputs=0)
            times.setdefault((path, 0), []).append(time.perf_counter() - started)
            for width in WIDTHS:
                started = time.perf_counter()
                backend.forward(tokens[N_PAST : N_PAST + width], n_outputs=width)
                times.setdefault((path, width), []).append(time.perf_counter() - started)
                backend.truncate(N_PAST)
    print("| model | prefill tok/s |", " | ".join(f"t({n}) ms" for n in WIDTHS), "|")
    print("|---" * (2 + len(WIDTHS)) + "|")
    for path in paths:
        milliseconds = [f"{1000 * statistics.median(times[path, width]):.1f}" for width in WIDTHS]
        print(
            "|", path.stem, "|", f"{N_PAST / statistics.median(times[path, 0]):.0f}", "|", " | ".join(milliseconds), "|"
        )


def judged(path: Path, chosen: list[np.ndarray[Any, np.dtype[np.int64]]], text: bytes) -> tuple[float, float]:
    """Agreement with the reference's choices, which the first call fills in, and perplexity over halves of windows."""
    backend = opened(path, N_WINDOW, 32)
    tokens = backend.model.vocabulary.encode(text)[:N_TOKENS]
    n_same = n_scored = 0
    surprise = 0.0
    for number, begin in enumerate(range(0, len(tokens), N_WINDOW)):
        window = tokens[begin : begin + N_WINDOW]
        rows = all_rows(backend, window)
        if number == len(chosen):
            chosen.append(rows.argmax(1))
        n_same += int((rows.argmax(1) == chosen[number]).sum())
        half = len(window) // 2
        part = rows[half:-1].astype(np.float64)
        part -= part.max(1, keepdims=True)
        surprise += float((np.log(np.exp(part).sum(1)) - part[np.arange(len(part)), window[half + 1 :]]).sum())
        n_scored += len(part)
    backend.close()
    backend.model.close()
    return n_same / len(tokens), float(np.exp(surprise / n_scored))


def all_rows(backend: Backend, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    backend.truncate(0)
    width = backend.max_outputs
    parts = [tokens[i : i + width] for i in range(0, len(tokens), width)]
    return np.concatenate([backend.forward(part, n_outputs=len(part)).copy() for part in parts])


def memory(paths: list[Path]) -> None:
    errors = []
    print("| model | context | batch | predicted MiB | measured MiB | error |\n|---|---|---|---|---|---|")
    for path in paths:
        for n_ctx, n_ubatch in MEMORY_SETTINGS:
            options = EngineOptions(n_ctx=n_ctx, n_draft=4, n_ubatch=n_ubatch, main_device="cpu")
            predicted = plan_here(path.resolve(), None, options)[0].process_bytes
            found = measured(path, n_ctx, n_ubatch)
            errors.append(abs(predicted / found - 1))
            row = [path.name, f"{n_ctx:,}", n_ubatch, f"{predicted / MIB:.0f}", f"{found / MIB:.0f}"]
            print("|", *row, f"{predicted / found - 1:+.1%}", "|", sep=" | ", flush=True)
    print(f"{len(errors)} configurations: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}")


def measured(path: Path, n_ctx: int, n_ubatch: int) -> int:
    """Peak resident bytes of a process that fills the context."""
    request = json.dumps([str(path), n_ctx, n_ubatch])
    command = [sys.executable, __file__, "child", request]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def child(request: str) -> None:
    from edgellm.runtime.bringup.load import load
    from edgellm.runtime.decode import generate
    from edgellm.runtime.sampling import GREEDY

    path, n_ctx, n_ubatch = json.loads(request)
    with load(path, None, EngineOptions(n_ctx=n_ctx, n_draft=4, n_ubatch=n_ubatch, main_device="cpu")) as engine:
        prompt = engine.model.vocabulary.encode(Path(__file__).read_bytes() * 4)[: n_ctx - 60]
        engine.drafter.begin(prompt)
        for _ in generate(engine.backend, engine.drafter, prompt, GREEDY, n_draft=4, max_new=40):
            pass
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) * 1024)


def rollback(paths: list[Path]) -> None:
    for path in paths:
        backend = opened(path, 512, 9, 64)
        text = backend.model.vocabulary.encode(Path(__file__).read_bytes())[:200]
        fresh = np.concatenate([backend.forward(text[i : i + 8], n_outputs=8).copy() for i in range(0, 200, 8)])
        backend.truncate(0)
        rng, worst, n_rejected = random.Random(0), 0.0, 0
        for _ in range(N_PATTERNS):
            if len(backend.tokens) >= 190:
                backend.truncate(rng.randint(0, 60))
            n_held = len(backend.tokens)
            n_accepted = rng.randint(0, min(n_drafted := rng.randint(0, 8), 198 - n_held))
            wrong = [rng.randrange(1000, 20_000) for _ in range(n_drafted - n_accepted)]
            draft = text[n_held + 1 : n_held + 1 + n_accepted] + wrong
            rows = backend.forward([text[n_held], *draft], n_outputs=1 + len(draft))
            worst = max(worst, float(np.abs(rows[: n_accepted + 1] - fresh[n_held : n_held + n_accepted + 1]).max()))
            n_rejected += len(wrong)
            backend.truncate(n_held + 1 + n_accepted)
        print(
            f"{path.name}: {N_PATTERNS} patterns, {n_rejected} tokens rejected, largest difference {worst:.2g}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "costs", "memory", "rollback", "child"])
    parser.add_argument("arguments", nargs="+")
    parser.add_argument("--text", type=Path, help="what is read for agreement and perplexity")
    parser.add_argument("--rounds", type=int, default=7, help="times that each pass is timed")
    options = parser.parse_args()
    if options.what == "child":
        return child(options.arguments[0])
    paths = [Path(argument) for argument in options.arguments]
    if options.what == "costs":
        return costs(paths, options.rounds)
    if options.what == "quality":
        from edgellm.export.onnx.onnx_export import verification_text

        return quality(paths[0], paths[1:], options.text.read_bytes() if options.text else verification_text().encode())
    return memory(paths) if options.what == "memory" else rollback(paths)


if __name__ == "__main__":
    main()
