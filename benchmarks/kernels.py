"""The kernels against the roofline and against stock llama.cpp, both sides interleaved in one run.

    python benchmarks/kernels.py products                          # every weight type and batch
    python benchmarks/kernels.py model FILE.gguf                   # t(n), a prompt of 512 tokens, loading, residence
    python benchmarks/kernels.py model FILE.gguf --plot tn.png     # needs matplotlib

Run it on an otherwise idle machine. Times of whole models are medians; of products the fastest of many, since one
product is shorter than a time slice.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
PAST, PROMPT = 256, 512


def products(arguments: argparse.Namespace) -> None:
    from edgellm.runtime.kernels import load
    from edgellm.runtime.kernels.roofline import measure

    library = load.compiled()
    variant, n_threads = arguments.variant or load.variants()[0], arguments.threads
    roofline = measure(variant, n_threads=n_threads)
    assert library is not None
    assert roofline is not None
    print(
        f"{variant}, {n_threads} threads: {roofline.bytes_per_s / 1e9:.1f} GB/s, {roofline.macs_per_s / 1e9:.0f} GMAC/s"
    )
    rows, k = arguments.rows, arguments.k
    rng = np.random.default_rng(0)
    for number, name in enumerate(load.weight_types()):
        n_bytes = library.edgellm_packed_bytes(number, rows, k)
        n_copies = max(2, -(-(128 * 2**20) // n_bytes))  # so that none is still in a cache when its turn comes
        kind = gguf.GGMLQuantizationType[name.upper()]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        raw = np.zeros(rows * k // block * block_bytes, np.uint8)  # the time does not depend on the numbers
        packed = np.empty(n_bytes * n_copies, np.uint8)
        for i in range(n_copies):
            library.edgellm_pack(number, raw.ctypes.data, rows, k, packed[i * n_bytes :].ctypes.data, n_threads)
        for n in BATCHES:
            x, y = rng.standard_normal((n, k)).astype(np.float32), np.empty((n, rows), np.float32)
            took_s = library.edgellm_matmul(
                variant.encode(),
                number,
                packed.ctypes.data,
                n_copies,
                rows,
                k,
                x.ctypes.data,
                n,
                y.ctypes.data,
                n_threads,
                3,
            )
            n_macs = n * rows * k
            share = roofline.floor_s(n_bytes, n_macs) / took_s
            rates = f"{n_bytes / took_s / 1e9:6.1f} GB/s {n_macs / took_s / 1e9:6.0f} GMAC/s"
            print(f"{name:8} n={n:3d} {took_s * 1e6:8.0f} us {rates} {share:6.0%} of the roofline", flush=True)


def model(arguments: argparse.Namespace) -> None:
    sides = {name: Side(arguments.file, name) for name in arguments.kernels.split(",")}
    work = [*BATCHES, -PROMPT]
    times: dict[str, dict[int, list[float]]] = {name: {n: [] for n in work} for name in sides}
    for name, side in sides.items():
        print(f"{name}: {side.facts}")
        for n in work:
            side.seconds(n)  # warm
    for _ in range(arguments.repeat):
        for n in work:
            for name, side in sides.items():
                times[name][n].append(side.seconds(n))
    medians = {name: {n: statistics.median(all_s) for n, all_s in of_side.items()} for name, of_side in times.items()}
    for name, median in medians.items():
        cells = " ".join(f"{n}: {median[n] * 1e3:.1f} ms ({median[n] / median[1]:.2f})" for n in BATCHES)
        print(f"{name}: {cells}; prompt of {PROMPT}: {PROMPT / median[-PROMPT]:.0f} tok/s")
    for side in sides.values():
        side.close()
    if arguments.plot:
        plot(medians, arguments.plot)


class Side:
    """One process with one choice of kernels, since a process chooses but once."""

    def __init__(self, file: str, kernels: str) -> None:
        environment = {**os.environ, "EDGELLM_KERNELS": kernels}
        command = [sys.executable, __file__, "worker", file]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._read()

    def seconds(self, n: int) -> float:
        """Of a pass of `n` tokens behind PAST others; of a prompt of -n tokens when n is negative."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        self.process.communicate()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def worker(arguments: argparse.Namespace) -> None:
    from edgellm.runtime.kernels import install

    report = install()
    import llama_cpp as llama

    @llama.llama_log_callback
    def silent(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
        pass

    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    start = time.perf_counter()
    weights = llama.llama_model_load_from_file(arguments.file.encode(), llama.llama_model_default_params())
    load_s = time.perf_counter() - start
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 1024, PROMPT, PROMPT
    params.n_threads = params.n_threads_batch = arguments.threads
    params.n_outputs_max = 1 + max(BATCHES)
    context = llama.llama_init_from_model(weights, params)
    memory, batch = llama.llama_get_memory(context), llama.llama_batch_init(PROMPT, 0, 1)

    def run(tokens: Sequence[int], position: int, n_outputs: int) -> float:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i >= len(tokens) - n_outputs
        start = time.perf_counter()
        assert llama.llama_decode(context, batch) == 0
        return time.perf_counter() - start

    tokens = [(i * 7919 + 11) % 40000 + 100 for i in range(1024)]
    run(tokens[:PAST], 0, 1)
    lines = Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else []
    status = dict(line.split(":", 1) for line in lines)
    resident = {key: int(status[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM") if key in status}
    print(json.dumps({"kernels": report.variant, "load_s": round(load_s, 2), **resident}), flush=True)
    for line in sys.stdin:
        n = int(line)
        if n > 0:
            llama.llama_memory_seq_rm(memory, 0, PAST, -1)
            took_s = run(tokens[PAST : PAST + n], PAST, n)
        else:
            llama.llama_memory_seq_rm(memory, 0, 0, -1)
            took_s = run(tokens[:-n], 0, 1)
            llama.llama_memory_seq_rm(memory, 0, PAST, -1)
        print(json.dumps(took_s), flush=True)


def plot(medians: dict[str, dict[int, float]], file: str) -> None:
    import matplotlib.pyplot as plt

    for name, median in medians.items():
        plt.plot(BATCHES, [median[n] * 1e3 for n in BATCHES], marker="o", label=name)
    plt.xlabel("tokens in the batch")
    plt.ylabel("ms")
    plt.ylim(bottom=0)
    plt.legend()
    plt.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (products, model, worker):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        command.add_argument("--threads", type=int, default=os.cpu_count())
        if function is products:
            command.add_argument("--variant")
            command.add_argument("--rows", type=int, default=8960)
            command.add_argument("--k", type=int, default=1536)
        else:
            command.add_argument("file")
            command.add_argument("--kernels", default="off,auto")
            command.add_argument("--repeat", type=int, default=9)
            command.add_argument("--plot")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
