"""Time to the first token: a T5 against a decoder-only model with as many parameters, prompts of 128 to 2,048 tokens.

    python benchmarks/encoder.py [--repeats 3] [--weights Q8_0]

Both have random weights, so only time is told. Each prompt is read anew; the two take turns, and the median counts.
"First" is reading the prompt and one token of the answer, "next" a further token behind it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny_gguf import write_tiny
from tiny_t5 import write_tiny_t5

from edgellm.memory.context import ContextSettings
from edgellm.memory.cpu import cpu_name
from edgellm.runtime.backends.base import Backend
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_encoder import LlamaEncoderDecoder
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels

LENGTHS = (128, 256, 512, 1024, 2048)
N_NEXT = 8  # further tokens
N_VOCAB, WIDTH, N_HEADS, HEAD_DIM, N_FF = 4096, 512, 8, 64, 1536


def models(folder: Path, weights: str) -> dict[str, LlamaBackend | LlamaEncoderDecoder]:
    """Of equal size: a layer of the decoder has a second attention, so 8 + 8 layers of T5 are 18 of the other."""
    settings = ContextSettings(max(LENGTHS) + 64, n_ubatch=128, n_outputs=1)
    sizes = {"n_embd": WIDTH, "n_ff": N_FF, "n_heads": N_HEADS, "head_dim": HEAD_DIM, "n_vocab": N_VOCAB}
    t5 = write_tiny_t5(
        folder / "t5.gguf", n_layers=8, n_ctx_train=2048, tied=True, weights=weights, scale=0.02, **sizes
    )
    decoder = write_tiny(folder / "qwen3.gguf", "qwen3", n_layers=18, n_kv_heads=N_HEADS, weights=weights, **sizes)
    both, plain = LlamaModel(t5), LlamaModel(decoder)
    print(f"t5: {both.n_params / 1e6:.1f} M parameters, decoder-only: {plain.n_params / 1e6:.1f} M; {weights}")
    return {"t5": LlamaEncoderDecoder(both, settings), "decoder": LlamaBackend(plain, settings)}


def timed(backend: Backend, prompt: list[int]) -> tuple[float, float]:
    """Seconds to the first token, and of each further one."""
    backend.truncate(0)
    started = time.perf_counter()
    backend.forward(prompt[:-1], 0)
    token = int(backend.forward(prompt[-1:], 1)[0].argmax())
    first = time.perf_counter()
    for _ in range(N_NEXT):
        token = int(backend.forward([token], 1)[0].argmax())
    return first - started, (time.perf_counter() - first) / N_NEXT


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", default="Q8_0", choices=("F32", "F16", "Q8_0"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        backends = models(Path(folder), asked.weights)
        print(f"{cpu_name()}, kernels {kernels().variant}, {asked.repeats} repeats in turn")
        print(f"{'tokens':>7} {'t5 first':>10} {'decoder first':>14} {'ratio':>6} {'t5 next':>9} {'decoder next':>13}")
        for backend in backends.values():
            backend.warm_up()
        for length in LENGTHS:
            prompt = [*(3 + (i * 7919) % (N_VOCAB - 8) for i in range(length - 2)), 1, 0]
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in backends}
            for _ in range(asked.repeats):
                for name, backend in backends.items():
                    found[name].append(timed(backend, prompt))
            (a, b), (c, d) = (
                (statistics.median(x for x, _ in rows), statistics.median(y for _, y in rows))
                for rows in (found["t5"], found["decoder"])
            )
            print(
                f"{length:>7} {1e3 * a:>7.0f} ms {1e3 * c:>11.0f} ms {a / c:>6.2f} "
                f"{1e3 * b:>6.1f} ms {1e3 * d:>10.1f} ms"
            )
        for backend in backends.values():
            backend.close()
            backend.model.close()


if __name__ == "__main__":
    main()
