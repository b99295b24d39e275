"""The kernels against the roofline and against stock llama.cpp, both sides interleaved in one run.

    python benchmarks/kernels.py products                          # every weight type and batch
    python benchmarks/kernels.py model FILE.gguf                   # t(n), a prompt of 512 tokens, loading, residence
    python benchmarks/kernels.py model FILE.gguf --plot tn.png     # needs matplotlib
    python benchmarks/kernels.py perplexity FILE.gguf              # EDGELLM_KERNELS=off for the other side
    python benchmarks/kernels.py exactness FILE.gguf               # which sizes of a pass give the same bits

Run it on an otherwise idle machine. Times of whole models are medians; of products the fastest of many, since one
product is shorter than a time slice.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from sides import Side

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
PAST, PROMPT = 256, 512
ALL_COPIES_BYTES = 128 * 2**20  # of a matrix, in turn


def products(arguments: argparse.Namespace) -> None:
    from edgellm.runtime.kernels import load
    from edgellm.runtime.kernels.roofline import Roofline, measure

    library = load.compiled()
    variant, n_threads = arguments.variant or load.variants()[0], arguments.threads
    assert library is not None
    bandwidth, peak = 0.0, 0.0  # the best of what was measured before each type
    rows, k = arguments.rows, arguments.k
    rng = np.random.default_rng(0)
    names = load.weight_types() if arguments.types == "all" else arguments.types.split(",")
    batches = [int(n) for n in arguments.batches.split(",")]
    for name in names:
        found = measure(variant, n_threads=n_threads, read_bytes=ALL_COPIES_BYTES)
        assert found is not None
        bandwidth, peak = max(bandwidth, found.bytes_per_s), max(peak, found.macs_per_s)
        roofline = Roofline(variant, n_threads, bandwidth, peak)
        print(f"{variant}, {n_threads} threads: {bandwidth / 1e9:.1f} GB/s, {peak / 1e9:.0f} GMAC/s")
        number = load.weight_types().index(name)
        n_bytes = library.edgellm_packed_bytes(number, rows, k)
        n_copies = max(2, -(-ALL_COPIES_BYTES // n_bytes))  # so that none is still in a cache when its turn comes
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
        # The time does not depend on the numbers, as long as no scale is denormal.
        raw = np.full(rows * k // block * block_bytes, 0x3C, np.uint8)
        packed = np.empty(n_bytes * n_copies, np.uint8)
        for i in range(n_copies):
            library.edgellm_pack(number, raw.ctypes.data, rows, k, packed[i * n_bytes :].ctypes.data, n_threads)
        stock = StockProducts(name, raw, rows, k, n_copies, n_threads)
        for n in batches:
            x, y = rng.standard_normal((n, k)).astype(np.float32), np.empty((n, rows), np.float32)
            took_s, stock_s = math.inf, math.inf
            for _ in range(3):  # in turn
                ours_s = library.edgellm_matmul(
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
                    1,
                )
                took_s, stock_s = min(took_s, ours_s), min(stock_s, stock.seconds(x))
            n_macs = n * rows * k
            share = roofline.floor_s(n_bytes, n_macs) / took_s
            rates = f"{n_bytes / took_s / 1e9:6.1f} GB/s {n_macs / took_s / 1e9:6.0f} GMAC/s"
            line = f"{name:8} n={n:3d} {took_s * 1e6:8.0f} us {rates} {share:6.0%} of the roofline"
            print(f"{line}; stock {stock_s * 1e6:8.0f} us ({stock_s / took_s:.2f} x)", flush=True)
        stock.close()
    if arguments.onnx:
        onnx_products(rows, k, batches, n_threads)


class StockProducts:
    """llama.cpp's own product of one matrix, repacked where it can be, over several copies in turn."""

    def __init__(self, name: str, raw: NDArray[np.uint8], rows: int, k: int, n_copies: int, n_threads: int) -> None:
        from edgellm.runtime.kernels import load

        paths = [load.engine_library(part) for part in ("ggml-base", "ggml-cpu")]
        self.base, self.cpu = (ctypes.CDLL(str(path)) for path in paths)
        self._call(self.base, "ggml_log_set", SILENT, None)
        self.rows, self.k, self.n_copies = rows, k, n_copies
        self.backend = self._call(self.cpu, "ggml_backend_cpu_init")
        self._call(self.cpu, "ggml_backend_cpu_set_n_threads", self.backend, ctypes.c_int(n_threads))
        self.weights = self._context(n_copies)
        kind = int(gguf.GGMLQuantizationType[name.upper()])
        self.matrices = [self._tensor(self.weights, kind, k, rows) for _ in range(n_copies)]
        registry = self._call(self.cpu, "ggml_backend_cpu_reg")
        device = self._call(self.base, "ggml_backend_reg_dev_get", registry, ctypes.c_size_t(0))
        address = self._call(
            self.base, "ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts"
        )
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address.value)(device)
        where = ctypes.c_void_p(extra[0] or self._call(self.base, "ggml_backend_cpu_buffer_type").value)
        for attempt in (where, self._call(self.base, "ggml_backend_cpu_buffer_type")):
            self.buffer = self._call(self.base, "ggml_backend_alloc_ctx_tensors_from_buft", self.weights, attempt)
            # A repacking buffer leaves `extra` empty where it has no layout for the type: it cannot hold such weights.
            at = self.base.ggml_tensor_overhead() - 32 - 16
            packed = ctypes.c_void_p.from_address(self.matrices[0].value + at).value
            if attempt is not where or packed:
                break
            self._call(self.base, "ggml_backend_buffer_free", self.buffer)
            self._call(self.base, "ggml_free", self.weights)
            self.weights = self._context(n_copies)
            self.matrices = [self._tensor(self.weights, kind, k, rows) for _ in range(n_copies)]
        for matrix in self.matrices:
            self._set(matrix, raw)

    def seconds(self, x: NDArray[np.float32]) -> float:
        """Of the fastest product of x (n, k)."""
        context = self._context(2 * self.n_copies + 1, n_graphs=self.n_copies)
        columns = self._tensor(context, 0, self.k, len(x))
        products = [self._call(self.base, "ggml_mul_mat", context, matrix, columns) for matrix in self.matrices]
        graphs = []
        for product in products:
            graphs.append(self._call(self.base, "ggml_new_graph", context))
            self._call(self.base, "ggml_build_forward_expand", graphs[-1], product)
        host = self._call(self.base, "ggml_backend_cpu_buffer_type")
        buffer = self._call(self.base, "ggml_backend_alloc_ctx_tensors_from_buft", context, host)
        self._set(columns, x)
        best = math.inf
        for graph in graphs:
            start = time.perf_counter()
            self._call(self.base, "ggml_backend_graph_compute", self.backend, graph)
            best = min(best, time.perf_counter() - start)
        self._call(self.base, "ggml_backend_buffer_free", buffer)
        self._call(self.base, "ggml_free", context)
        return best

    def close(self) -> None:
        self._call(self.base, "ggml_backend_buffer_free", self.buffer)
        self._call(self.base, "ggml_free", self.weights)
        self._call(self.base, "ggml_backend_free", self.backend)

    def _context(self, n_tensors: int, n_graphs: int = 0) -> ctypes.c_void_p:
        n_bytes = (n_tensors + 1) * 512 + n_graphs * 2**18
        return self._call(self.base, "ggml_init", InitParams(n_bytes, None, True))

    def _tensor(self, context: ctypes.c_void_p, kind: int, k: int, rows: int) -> ctypes.c_void_p:
        shape = ctypes.c_int64(k), ctypes.c_int64(rows)
        return self._call(self.base, "ggml_new_tensor_2d", context, ctypes.c_int(kind), *shape)

    def _set(self, tensor: ctypes.c_void_p, data: NDArray[Any]) -> None:
        data = np.ascontiguousarray(data)
        where, size = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)
        self._call(self.base, "ggml_backend_tensor_set", tensor, where, ctypes.c_size_t(0), size)

    @staticmethod
    def _call(library: ctypes.CDLL, name: str, *arguments: Any) -> ctypes.c_void_p:
        function = library[name]
        function.restype = ctypes.c_void_p
        return ctypes.c_void_p(function(*arguments))


SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def onnx_products(rows: int, k: int, batches: Sequence[int], n_threads: int) -> None:
    """onnxruntime's product of 4-bit weights in blocks of 32 with int8 activations (accuracy level 4)."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    n_copies = max(2, -(-(128 * 2**20) // (rows * k * 9 // 16)))
    rng = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    for i in range(n_copies):
        quants = rng.integers(0, 256, (rows, k // 32, 16), dtype=np.uint8)
        scales = np.full(rows * k // 32, 0.01, np.float32)
        weights += [numpy_helper.from_array(quants, f"q{i}"), numpy_helper.from_array(scales, f"s{i}")]
        attributes = {"K": k, "N": rows, "bits": 4, "block_size": 32, "accuracy_level": 4}
        nodes.append(
            helper.make_node("MatMulNBits", ["x", f"q{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **attributes)
        )
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["n", rows]))
    graph = helper.make_graph(
        nodes, "products", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", k])], outputs, weights
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for n in batches:
        x = rng.standard_normal((n, k)).astype(np.float32)
        best = math.inf
        for _ in range(4):
            start = time.perf_counter()
            session.run(None, {"x": x})
            best = min(best, (time.perf_counter() - start) / n_copies)
        n_macs = n * rows * k
        print(f"onnxruntime int4 n={n:3d} {best * 1e6:8.0f} us {n_macs / best / 1e9:6.0f} GMAC/s", flush=True)


def model(arguments: argparse.Namespace) -> None:
    sides = {name: Side(name, __file__, ["worker", arguments.file]) for name in arguments.kernels.split(",")}
    work = [*BATCHES, -PROMPT]  # tokens of a pass behind PAST others; negative: of a prompt
    times: dict[str, dict[int, list[float]]] = {name: {n: [] for n in work} for name in sides}
    for name, side in sides.items():
        print(f"{name}: {side.hello}", flush=True)
        for n in work:
            side.ask(n)  # warm
    for _ in range(arguments.repeat):
        for n in work:
            for name, side in sides.items():
                times[name][n].append(side.ask(n))
        medians = {name: {n: statistics.median(all_s) for n, all_s in of.items()} for name, of in times.items()}
        for name, median in medians.items():
            cells = " ".join(f"{n}: {median[n] * 1e3:.1f} ms ({median[n] / median[1]:.2f})" for n in BATCHES)
            print(f"{name}: {cells}; prompt of {PROMPT}: {PROMPT / median[-PROMPT]:.0f} tok/s", flush=True)
    for side in sides.values():
        side.close()
    if arguments.plot:
        plot(medians, arguments.plot)


def perplexity(arguments: argparse.Namespace) -> None:
    """Of windows of 512 tokens, each predicted from the second on."""
    from edgellm.memory.context import ContextSettings
    from edgellm.runtime.backends.llama_cpp import LlamaBackend
    from edgellm.runtime.backends.llama_model import LlamaModel
    from edgellm.runtime.backends.llama_process import kernels

    n_window, n_rows = 512, 64
    weights = LlamaModel(Path(arguments.file))
    backend = LlamaBackend(weights, ContextSettings(n_ctx=n_window, n_outputs=n_rows, n_threads=arguments.threads))
    tokens = weights.vocabulary.encode(sample_text(arguments.text))
    total, n_predicted = 0.0, 0
    for first in range(0, len(tokens) - 1, n_window):
        window = tokens[first : first + n_window]
        backend.truncate(0)
        for at in range(0, len(window) - 1, n_rows):
            part = window[at : at + n_rows]
            logits = backend.forward(part, len(part)).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            following = window[at + 1 : at + 1 + len(part)]
            rows = np.arange(len(following))
            total -= float((logits[rows, following] - np.log(np.exp(logits[rows]).sum(axis=1))).sum())
            n_predicted += len(following)
    print(f"{kernels().variant}: perplexity {math.exp(total / n_predicted):.4f} over {n_predicted} tokens")


def exactness(arguments: argparse.Namespace) -> None:
    """Of 32 tokens behind a context: how many have the same bits in passes of n as alone."""
    from edgellm.memory.context import ContextSettings
    from edgellm.runtime.backends.llama_cpp import LlamaBackend
    from edgellm.runtime.backends.llama_model import LlamaModel
    from edgellm.runtime.backends.llama_process import kernels

    n_probe, widths = 32, (*range(1, 17), 32)
    weights = LlamaModel(Path(arguments.file))
    tokens = weights.vocabulary.encode(sample_text(arguments.text))
    for n_context in (int(n) for n in arguments.contexts.split(",")):
        options = ContextSettings(n_ctx=n_context + n_probe, n_outputs=n_probe, n_threads=arguments.threads)
        backend = LlamaBackend(weights, options)
        backend.forward(tokens[:n_context], 0)
        probe, alone, cells = tokens[n_context : n_context + n_probe], None, []
        for n in widths:
            rows = []
            for at in range(0, n_probe, n):
                part = probe[at : at + n]
                rows.append(backend.forward(part, len(part)).copy())
            backend.truncate(n_context)
            logits = np.concatenate(rows)
            alone = logits if alone is None else alone
            cells.append(f"{n}: {int((logits == alone).all(axis=1).sum())}")
        print(f"{kernels().variant}, context {n_context}, equal of {n_probe}: {' '.join(cells)}", flush=True)
        backend.close()


def sample_text(file: str | None) -> bytes:
    """The file, or 20,000 characters of Python's own documentation."""
    if file:
        return Path(file).read_bytes()
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))[:20_000].encode()


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
    for function in (products, model, worker, perplexity, exactness):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        command.add_argument("--threads", type=int, default=os.cpu_count())
        if function is products:
            command.add_argument("--variant")
            command.add_argument("--rows", type=int, default=8960)
            command.add_argument("--k", type=int, default=1536)
            command.add_argument("--types", default="all")
            command.add_argument("--batches", default=",".join(map(str, BATCHES)))
            command.add_argument("--onnx", action="store_true", help="onnxruntime too; needs onnx and onnxruntime")
        else:
            command.add_argument("file")
            command.add_argument("--kernels", default="off,auto")
            command.add_argument("--repeat", type=int, default=9)
            command.add_argument("--plot")
            command.add_argument("--text")
            command.add_argument("--contexts", default="100,1000,4000")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
