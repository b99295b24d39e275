"""Numbers of a checkpoint as bytes of a GGUF file, each of them finite: float32, half precision and bfloat16."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgellm.export.read.checkpoint import StoredTensor
from edgellm.export.read.facts import UnsupportedModel

FloatType = Literal["F32", "F16", "BF16"]
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama.cpp's `general.file_type`

_NUMPY: dict[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def items(data: bytes, stored: StoredTensor) -> NDArray[Any]:
    """The bytes as numbers, shape (n,); bfloat16, which numpy lacks, as its 16 bits."""
    found: NDArray[Any] = np.frombuffer(data, _NUMPY[stored.type])
    return found


def paired(items: NDArray[Any], n_heads: int, n_rows: int) -> NDArray[Any]:
    """Rows of each head from (first half, second half) to neighbours: row 0, row d/2, row 1, row d/2 + 1, ..."""
    halves = items.reshape(n_heads, 2, n_rows // n_heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1)


def _bf16_to_f16() -> NDArray[np.uint16]:
    """The half-precision bits of each of the 65,536 bfloat16 numbers."""
    with np.errstate(over="ignore"):
        return (np.arange(2**16, dtype="<u4") << 16).view("<f4").astype("<f2").view("<u2")


_BF16_TO_F16 = _bf16_to_f16()


# The bits of an exponent that stands for infinity or NaN.
_NOT_FINITE = {"F16": 0x7C00, "BF16": 0x7F80}


def converted(items: NDArray[Any], stored: StoredTensor, type_name: str, *, plus: float) -> bytes:
    """Numbers of the stored type as bytes of `type_name`, each with `plus` added."""
    _refuse_non_finite(items, stored)
    if stored.type == type_name and not plus:
        return bytes(items.data)
    if stored.type == "BF16" and type_name == "F16" and not plus:
        return _in_range(_BF16_TO_F16[items], stored)
    floats: NDArray[np.float32] = (
        (items.astype("<u4") << 16).view("<f4") if stored.type == "BF16" else items.astype("<f4", copy=False)
    )
    floats = floats + np.float32(plus) if plus else floats
    if type_name == "F32":
        return bytes(floats.astype("<f4", copy=False).data)
    if type_name == "BF16":
        bits = floats.view("<u4")
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
        return bytes(nearest.astype("<u2").data)
    with np.errstate(over="ignore"):
        return _in_range(floats.astype("<f2").view("<u2"), stored)


def as_type(floats: NDArray[np.float32], stored: StoredTensor, type_name: str) -> bytes:
    """Float32 numbers of a tensor as bytes of `type_name`; those that it cannot hold are refused by name."""
    return converted(floats, replace(stored, type="F32"), type_name, plus=0.0)


def _refuse_non_finite(items: NDArray[Any], stored: StoredTensor) -> None:
    if stored.type == "F32":
        finite = bool(np.isfinite(items).all())
    else:
        exponent = _NOT_FINITE[stored.type]
        finite = not bool(((items.view("<u2") & exponent) == exponent).any())
    if not finite:
        raise UnsupportedModel(
            f"{stored.path}: {stored.name} holds NaN or infinite numbers: the checkpoint is damaged, download it again"
        )


def _in_range(halves: NDArray[np.uint16], stored: StoredTensor) -> bytes:
    """Half-precision numbers as bytes; those of a finite source that became infinite are refused."""
    if np.any((halves & 0x7FFF) == 0x7C00):
        raise UnsupportedModel(f"{stored.path}: {stored.name} holds numbers beyond F16: export with --quant BF16")
    return bytes(halves.data)
