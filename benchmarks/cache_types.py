"""What a quantised cache does to the output: perplexity of a text, and how often the greedy choice changes.

    python benchmarks/cache_types.py --model FILE --text FILE [--kv q8_0] [--kv q4_0]

The text's first 20,000 bytes are read in windows of the context; each type sees the same tokens in the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgellm.memory.context import ContextSettings, KvType
from edgellm.memory.cpu import usable_cores
from edgellm.runtime.backends.base import Logits
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions

N_BYTES = 20_000
N_CTX, N_ROWS = 2048, 32


def rows(model: LlamaModel, tokens: list[int], kv: KvType) -> Iterator[Logits]:
    """Logits after each token, N_ROWS at a time, (n, n_vocab)."""
    settings = ContextSettings(N_CTX, 64, N_ROWS, kv, n_threads=usable_cores())
    backend = LlamaBackend(model, settings)
    try:
        for window in range(0, len(tokens), N_CTX):
            backend.truncate(0)
            part = tokens[window : window + N_CTX]
            for start in range(0, len(part), N_ROWS):
                some = part[start : start + N_ROWS]
                yield backend.forward(some, n_outputs=len(some)).copy()
    finally:
        backend.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--kv", action="append", default=[])
    arguments = parser.parse_args()
    model = LlamaModel(arguments.model, ModelOptions(mmap=False))
    tokens = model.vocabulary.encode(arguments.text.read_bytes()[:N_BYTES])
    following = np.array([*tokens[1:], -1])
    choices: dict[str, np.ndarray] = {}
    for kv in ("f16", *(arguments.kv or ["q8_0", "q4_0"])):
        surprise, chosen, position = 0.0, [], 0
        for part in rows(model, tokens, kv):
            part = part.astype(np.float64)
            chosen.append(part.argmax(axis=1))
            wanted = following[position : position + len(part)]
            kept = wanted >= 0
            top = part.max(axis=1, keepdims=True)
            log_sum = (top + np.log(np.exp(part - top).sum(axis=1, keepdims=True)))[:, 0]
            surprise += float((log_sum[kept] - part[kept, wanted[kept]]).sum())
            position += len(part)
        choices[kv] = np.concatenate(chosen)
        changed = float((choices[kv] != choices["f16"]).mean())
        print(
            json.dumps(
                {
                    "kv": kv, "n_tokens": len(tokens), "perplexity": round(math.exp(surprise / (len(tokens) - 1)), 4),
                    "greedy_choices_changed": round(changed, 5),
                }
            ),
            flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
