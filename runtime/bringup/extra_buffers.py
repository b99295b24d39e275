"""Whether llama.cpp's extra buffer types (AMX, repacking) work on this machine: tried once in a child, then remembered.

A library built for one processor may find another, or one whose system does not let it use what it lists; its products
then end the process with SIGILL. The child runs a tiny model, one layer a weight type, with those buffers and without
them, and compares the logits.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.children import ChildFailed, Send, answers, serve
from edgellm.memory.cpu import cpu_flags, cpu_name
from edgellm.memory.folders import home
from edgellm.memory.gguf import MAGIC, TENSOR_TYPES, TYPE_IDS
from edgellm.memory.kept_answers import KeptAnswers
from edgellm.runtime.backends import llama_devices
from edgellm.runtime.kernels.load import engine_library

VERSION = 1  # of the trial and of what is kept of it
TIMEOUT_S = 120.0
TOLERANCE = 0.1  # of the logits' norm; layouts round activations differently, a broken one is off by 1 and more
WIDTHS = (1, 2, 7, 33)  # tokens a pass: products of a vector, of a few, of a prompt
KEPT = 16  # verdicts, of the machines and libraries that share the folder


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the extra buffers may be used, what they are, and why not."""

    usable: bool
    buffers: tuple[str, ...]  # as llama.cpp names those that took weights
    reason: str


@cache
def verdict() -> Verdict:
    """Tried at most once a machine and library. `EDGELLM_EXTRA_BUFFERS` may be `off`, `on` (untried) or `auto`."""
    wanted = os.environ.get("EDGELLM_EXTRA_BUFFERS", "").strip().lower()
    if wanted in ("off", "on"):
        return Verdict(wanted == "on", (), f"EDGELLM_EXTRA_BUFFERS={wanted}")
    kept, key = KeptAnswers(home() / "extra-buffers.json", KEPT, lambda kept: _verdict(kept) is not None), _key()
    if (found := _verdict(kept.get(key))) is not None:
        return found
    try:
        found = _try()
    except ChildFailed as error:
        return Verdict(False, (), f"they could not be tried: {error}")
    kept.put(key, asdict(found))
    return found


def _try() -> Verdict:
    """
    Raises:
        ChildFailed: the trial did not come as far as using them.
    """
    buffers: tuple[str, ...] = ()
    began = False
    try:
        for answer in answers("edgellm.runtime.bringup.extra_buffers", {}, timeout_s=TIMEOUT_S):
            if "buffers" in answer:
                buffers, began = tuple(answer["buffers"]), True
            if "difference" in answer:
                wrong = not answer["difference"] <= TOLERANCE
                return Verdict(not wrong, buffers, "their results are wrong here" if wrong else "tried here, they work")
    except ChildFailed as error:
        if began:
            return Verdict(False, buffers, f"tried in a child: {error.ended or error}")
        raise
    raise ChildFailed("the trial ended without an answer")


def _key() -> str:
    """This processor and this library."""
    library = engine_library("ggml-cpu")
    built = library.stat() if library is not None else None
    facts = [VERSION, cpu_name(), cpu_flags(), sys.platform, built and (built.st_size, built.st_mtime_ns)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _verdict(kept: Any) -> Verdict | None:
    try:
        return Verdict(kept["usable"] is True, tuple(map(str, kept["buffers"])), str(kept["reason"]))
    except (KeyError, TypeError):
        return None


# ---- the child -------------------------------------------------------------------------------------------------------

N_EMBD, N_FF, N_VOCAB, N_HEADS = 256, 512, 128, 4
TYPES = (  # of weights that some extra buffer type may claim
    "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
    "MXFP4",
)  # fmt: skip


def _trial(_: Mapping[str, Any], send: Send) -> None:
    import llama_cpp.llama_cpp as api

    from edgellm.runtime.backends import llama_log

    log: list[str] = []
    llama_log.start(lambda _, text: log.append(text))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.gguf"
        path.write_bytes(_model(api))
        plain = _logits(api, path, extra=False)
        del log[:]
        model = _load(api, path, extra=True)
        # "load_tensors:   CPU_REPACK model buffer size = ..."
        names = [line.split(":", 1)[1].split()[0] for line in log if "model buffer size" in line]
        send({"buffers": sorted({name for name in names if name not in ("CPU", "CPU_Mapped")})})
        api.llama_model_free(model)
        extra = _logits(api, path, extra=True)
        norm = float(np.linalg.norm(plain))
        send({"difference": float(np.linalg.norm(extra - plain)) / norm if norm > 0 else float("inf")})


def _load(api: Any, path: Path, *, extra: bool) -> Any:
    parameters = api.llama_model_default_params()
    parameters.load_mode = api.LLAMA_LOAD_MODE_NONE
    parameters.use_extra_bufts = extra
    pointed_to = llama_devices.place(api, parameters, ())
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    del pointed_to
    if not model:
        raise ChildFailed("the trial's own model does not load")
    return model


def _logits(api: Any, path: Path, *, extra: bool) -> NDArray[np.float32]:
    """Logits of passes of all WIDTHS, shape (sum of WIDTHS, N_VOCAB)."""
    model = _load(api, path, extra=extra)
    parameters = api.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 256
    parameters.n_threads = parameters.n_threads_batch = 2
    context = api.llama_init_from_model(model, parameters)
    if not context:
        raise ChildFailed("the trial's own model gets no context")
    rows, n_held = [], 0
    for width in WIDTHS:
        batch = api.llama_batch_init(width, 0, 1)
        for i in range(width):
            batch.token[i], batch.pos[i], batch.logits[i] = (7 * (n_held + i)) % N_VOCAB, n_held + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.n_tokens = width
        if api.llama_decode(context, batch):
            raise ChildFailed("the trial's own model does not run")
        rows.append(np.ctypeslib.as_array(api.llama_get_logits(context), (width, N_VOCAB)).copy())
        api.llama_batch_free(batch)
        n_held += width
    api.llama_free(context)
    api.llama_model_free(model)
    return np.concatenate(rows)


def _model(api: Any) -> bytes:
    """A model of random weights as a GGUF file, one layer for each of TYPES."""
    rng = np.random.default_rng(0)
    tensors: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (N_EMBD, N_VOCAB), "F32"),
        ("output_norm.weight", (N_EMBD,), "F32"),
    ]
    for layer, kind in enumerate(TYPES):
        shapes: dict[str, tuple[int, ...]] = {"attn_norm": (N_EMBD,), "ffn_norm": (N_EMBD,)}
        shapes |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (N_EMBD, N_EMBD))
        shapes |= {"ffn_gate": (N_EMBD, N_FF), "ffn_up": (N_EMBD, N_FF), "ffn_down": (N_FF, N_EMBD)}
        tensors += [
            (f"blk.{layer}.{name}.weight", shape, kind if len(shape) > 1 else "F32") for name, shape in shapes.items()
        ]
    head: dict[str, str | int | float] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "none",
        "llama.vocab_size": N_VOCAB,
        "llama.context_length": 256,
        "llama.embedding_length": N_EMBD,
        "llama.feed_forward_length": N_FF,
        "llama.block_count": len(TYPES),
        "llama.attention.head_count": N_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
    }
    info, data = b"", b""
    for name, shape, kind in tensors:
        rows = rng.standard_normal((shape[-1] if len(shape) > 1 else 1, shape[0]), np.float32)
        rows = rows / np.sqrt(shape[0], dtype=np.float32) if len(shape) > 1 else np.abs(rows)
        info += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_IDS[kind], len(data))
        raw = _quantised(api, rows, kind)
        data += raw + bytes(-len(raw) % 32)
    blob = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(head)) + b"".join(map(_entry, head.items())) + info
    return blob + bytes(-len(blob) % 32) + data


def _quantised(api: Any, rows: NDArray[np.float32], kind: str) -> bytes:
    if kind == "F32":
        return rows.tobytes()
    _, n_block, block_bytes = TENSOR_TYPES[TYPE_IDS[kind]]
    out = ctypes.create_string_buffer(rows.size // n_block * block_bytes)
    quantize = api._lib.ggml_quantize_chunk
    quantize.restype, c_i64 = ctypes.c_size_t, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, c_i64, c_i64, c_i64, ctypes.c_void_p]
    quantize(TYPE_IDS[kind], rows.ctypes.data, out, 0, rows.shape[0], rows.shape[1], None)
    return out.raw


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _entry(item: tuple[str, str | int | float]) -> bytes:
    key, value = item
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", 8) + _text(value)
    return _text(key) + (struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value))


if __name__ == "__main__":
    serve(_trial, ChildFailed)
