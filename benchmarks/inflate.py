"""A model that costs what a large one costs and says what a small one says, to measure drafting without a large file.

    python benchmarks/inflate.py SMALL.gguf LARGE.gguf [--width 4096] [--ff 11008] [--layers 32] [--silent 28]

Every matrix of a llama-like model is padded with blocks of zeros: the wider rows multiply to the same sums, norms are
scaled by the root of the widths' ratio, further layers add nothing. So the small model is a drafter that nearly always
agrees, at the ratio of cost that a real pair of those sizes has: an upper bound of what drafting gives, on real text.
With --silent the layers from there on add nothing either: of the small model's own width, a drafter that agrees less.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgellm.export.convert import gguf_writer as writer
from edgellm.export.convert.gguf_copy import raw_entries
from edgellm.export.convert.gguf_writer import PlannedTensor, tensor_bytes
from edgellm.memory.gguf import GgufHeader, TensorInfo, read_header

_PIECE_BYTES = 1 << 24


def padded(header: GgufHeader, tensor: TensorInfo, name: str, shape: tuple[int, int], *, empty: bool) -> PlannedTensor:
    """A matrix with zeros behind each row and behind the last; `empty`: nothing but zeros."""
    width, n_rows = (tensor_bytes((extent, 1), tensor.type) for extent in (tensor.shape[0], shape[0])), tensor.shape[1]
    short, wide = width

    def rows() -> Iterator[bytes]:
        n_full = 0 if empty else n_rows
        data = np.memmap(header.path, np.uint8, "r", header.data_offset + tensor.offset, (n_rows, short))
        step = max(_PIECE_BYTES // wide, 1)
        for start in range(0, shape[1], step):
            piece = np.zeros((min(step, shape[1] - start), wide), np.uint8)
            n = min(max(n_full - start, 0), len(piece))
            piece[:n, :short] = data[start : start + n]
            yield piece.tobytes()

    return PlannedTensor(name, shape, tensor.type, rows)


def vector(header: GgufHeader, tensor: TensorInfo, name: str, width: int) -> PlannedTensor:
    """A norm's factors for rows that are mostly zeros: their root mean square is smaller by the root of the share."""
    values = np.memmap(header.path, np.float32, "r", header.data_offset + tensor.offset, tensor.shape)
    wide = np.zeros(width, np.float32)
    wide[: len(values)] = values * math.sqrt(len(values) / width)
    return PlannedTensor(name, (width,), "F32", lambda: [wide.tobytes()])


def inflate(source: Path, out: Path, width: int, ff: int, n_layers: int, n_heard: int) -> None:
    header = read_header(source)
    if header.architecture != "llama":
        raise SystemExit(f"{source} is of architecture {header.architecture}: only llama is inflated")
    n_embd, n_heads, n_kv = (
        int(header.hparam(key)) for key in ("embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    head, ratio, n_own = n_embd // n_heads, n_heads // n_kv, int(header.hparam("block_count"))
    kv = width // (head * ratio)
    shapes = {
        "token_embd": (width, 0), "output": (width, 0),
        "attn_q": (width, kv * ratio * head), "attn_k": (width, kv * head), "attn_v": (width, kv * head),
        "attn_output": (kv * ratio * head, width),
        "ffn_gate": (width, ff), "ffn_up": (width, ff), "ffn_down": (ff, width),
    }  # fmt: skip
    tensors = []
    by_name = {tensor.name: tensor for tensor in header.tensors}
    more = [
        f"blk.{layer}.{name[6:]}" for layer in range(n_own, n_layers) for name in by_name if name.startswith("blk.0.")
    ]
    for name in [*by_name, *more]:
        is_more = name not in by_name
        tensor = by_name[f"blk.0.{name.split('.', 2)[2]}"] if is_more else by_name[name]
        if len(tensor.shape) == 1:
            tensors.append(vector(header, tensor, name, width))
            continue
        inner, outer = shapes[name.split(".")[-2]]
        is_silent = name.startswith("blk.") and int(name.split(".")[1]) >= n_heard
        empty = (is_more or is_silent) and ("attn_output" in name or "ffn_down" in name)
        tensors.append(padded(header, tensor, name, (inner, outer or tensor.shape[1]), empty=empty))
    eps = float(header.hparam("attention.layer_norm_rms_epsilon")) * n_embd / width
    changed = {
        "embedding_length": writer.u32(width), "feed_forward_length": writer.u32(ff),
        "block_count": writer.u32(max(n_layers, n_own)),
        "attention.head_count": writer.u32(kv * ratio), "attention.head_count_kv": writer.u32(kv),
        "attention.key_length": writer.u32(head), "attention.value_length": writer.u32(head),
        "attention.layer_norm_rms_epsilon": writer.f32(eps), "rope.dimension_count": writer.u32(head),
    }  # fmt: skip
    entries = dict(raw_entries(source)) | {f"llama.{key}": value for key, value in changed.items()}
    writer.write_gguf(out, entries, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--ff", type=int, default=11008)
    parser.add_argument("--layers", type=int, default=0, help="those of the source if fewer")
    parser.add_argument("--silent", type=int, default=1_000, help="layers from here on add nothing")
    arguments = parser.parse_args()
    inflate(arguments.source, arguments.out, arguments.width, arguments.ff, arguments.layers, arguments.silent)


if __name__ == "__main__":
    main()
