"""Plain decoding of edgellm against the smallest loop over the same library, interleaved: the price of our own loop.

    python benchmarks/plain_loop.py MODEL.gguf [--tokens 128] [--rounds 5]

The reference loop calls llama_decode with one token and takes the argmax of the logits. Both sides use
the same file, threads, context and batch sizes, in one process with one copy of the weights; only ratios mean anything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as api

from edgellm.memory.context import ContextSettings
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.sampling import GREEDY

TEXT = b"The history of the lighthouse begins with fires on hills, and "


def ours(backend: LlamaBackend, prompt: list[int], n_tokens: int) -> tuple[list[int], float]:
    backend.truncate(0)
    backend.forward(prompt[:-1], n_outputs=0)
    started = time.perf_counter()
    tokens = [t for s in generate(backend, NoDrafter(), prompt, GREEDY, n_draft=0, max_new=n_tokens) for t in s.tokens]
    return tokens, time.perf_counter() - started


def theirs(backend: LlamaBackend, prompt: list[int], n_tokens: int) -> tuple[list[int], float]:
    """The same context object, driven by the library's calls alone."""
    backend.truncate(0)
    backend.forward(prompt[:-1], n_outputs=0)
    ctx, n_vocab = backend._ctx, backend.n_vocab
    token = (api.llama_token * 1)(prompt[-1])
    tokens: list[int] = []
    started = time.perf_counter()
    for _ in range(n_tokens):
        if api.llama_decode(ctx, api.llama_batch_get_one(token, 1)):
            raise SystemExit("llama_decode failed")
        row = np.ctypeslib.as_array(api.llama_get_logits_ith(ctx, -1), (n_vocab,))
        token[0] = int(row.argmax())
        tokens.append(token[0])
    seconds = time.perf_counter() - started
    api.llama_memory_clear(api.llama_get_memory(ctx), False)
    del backend.tokens[:]
    return tokens, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = LlamaModel(arguments.model)
    backend = LlamaBackend(model, ContextSettings(4096))
    backend.warm_up()
    prompt = model.vocabulary.encode(TEXT * 3)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for i in range(arguments.rounds + 1):
        outputs = {}
        for name, loop in [("ours", ours), ("theirs", theirs)][:: 1 if i % 2 else -1]:
            outputs[name], seconds = loop(backend, prompt, arguments.tokens)
            if i:  # the first round warms up
                times[name].append(seconds)
        assert outputs["ours"] == outputs["theirs"], "the two loops disagree"
    ratios = [a / b for a, b in zip(times["ours"], times["theirs"], strict=True)]
    for name, values in times.items():
        print(f"{name:7} {arguments.tokens / statistics.median(values):6.2f} tok/s (median of {arguments.rounds})")
    print(f"time ratio ours / theirs: median {statistics.median(ratios):.4f}, {min(ratios):.4f} to {max(ratios):.4f}")


if __name__ == "__main__":
    main()
