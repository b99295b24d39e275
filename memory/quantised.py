"""Quantised matrices as sums of what is trained: every block format is linear in the half-precision numbers it holds.

A weight is `sum over fields f of f * basis_f`: for Q4_1 the scale times the code plus the minimum times one. The codes
stay; a scale or a minimum moves by `theta` times a unit that goes with its block (PEQA, arXiv:2305.14152). So the
result is a file of the same type, size and speed, and nothing of what was learnt is rounded away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = np.float32
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """One of ggml's block formats.

    `bases` takes blocks [n, block_bytes] and gives for each field the basis [n, n_weights], or None for all ones.
    """

    n_weights: int
    n_bytes: int
    fields: tuple[int, ...]  # offsets of the half-precision numbers in a block, bytes
    bases: Callable[[Bytes], tuple[NDArray[np.int16] | None, ...]]


def _nibbles(packed: Bytes) -> NDArray[np.int16]:
    return np.concatenate((packed & 15, packed >> 4), axis=-1).astype(np.int16)


def _fifth_bits(packed: Bytes) -> NDArray[np.int16]:
    return np.unpackbits(packed, axis=-1, bitorder="little").astype(np.int16) << 4


def _q4_0(blocks: Bytes) -> tuple[NDArray[np.int16] | None, ...]:
    return (_nibbles(blocks[:, 2:]) - np.int16(8),)


def _q4_1(blocks: Bytes) -> tuple[NDArray[np.int16] | None, ...]:
    return _nibbles(blocks[:, 4:]), None


def _q5_0(blocks: Bytes) -> tuple[NDArray[np.int16] | None, ...]:
    return (_nibbles(blocks[:, 6:]) + _fifth_bits(blocks[:, 2:6]) - np.int16(16),)


def _q5_1(blocks: Bytes) -> tuple[NDArray[np.int16] | None, ...]:
    return _nibbles(blocks[:, 8:]) + _fifth_bits(blocks[:, 4:8]), None


def _q8_0(blocks: Bytes) -> tuple[NDArray[np.int16] | None, ...]:
    return (blocks[:, 2:].view(np.int8).astype(np.int16),)


def _k_scales(packed: Bytes) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The eight six-bit scales and minima of 12 bytes. [n, 8] each."""
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate((low & 63, (rest & 15) | ((low >> 6) << 4)), axis=-1)
    minima = np.concatenate((high & 63, (rest >> 4) | ((high >> 6) << 4)), axis=-1)
    return scales.astype(np.int16), minima.astype(np.int16)


def _in_order(packed: Bytes) -> NDArray[np.int16]:
    """Nibbles of 128 bytes in the order of their weights: 32 low ones, then the 32 high ones, four times."""
    parts = packed.reshape(-1, 4, 32)
    return np.stack((parts & 15, parts >> 4), axis=2).reshape(-1, 8, 32).astype(np.int16)


def _with_minima(codes: NDArray[np.int16], packed: Bytes) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    scales, minima = _k_scales(packed)
    n = len(codes)
    return (codes * scales[..., None]).reshape(n, 256), -np.repeat(minima, 32, axis=-1)


def _q4_k(blocks: Bytes) -> tuple[NDArray[np.int16] | None, ...]:
    return _with_minima(_in_order(blocks[:, 16:144]), blocks[:, 4:16])


def _q5_k(blocks: Bytes) -> tuple[NDArray[np.int16] | None, ...]:
    bits = (blocks[:, 16:48, None] >> np.arange(8, dtype=np.uint8)) & 1  # bit j of byte i is of weight 32 j + i
    fifth = bits.transpose(0, 2, 1).astype(np.int16) << 4
    return _with_minima(_in_order(blocks[:, 48:176]) + fifth, blocks[:, 4:16])


def _q6_k(blocks: Bytes) -> tuple[NDArray[np.int16] | None, ...]:
    low, high = blocks[:, 0:128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 32)
    nibbles = np.stack((low[..., :32] & 15, low[..., 32:] & 15, low[..., :32] >> 4, low[..., 32:] >> 4), axis=2)
    tops = (high[:, :, None, :] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    codes = (nibbles | (tops << 4)).astype(np.int16).reshape(-1, 256) - np.int16(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.int16)
    return (codes * np.repeat(scales, 16, axis=-1),)


FORMATS: dict[str, BlockFormat] = {
    "Q4_0": BlockFormat(32, 18, (0,), _q4_0),
    "Q4_1": BlockFormat(32, 20, (0, 2), _q4_1),
    "Q5_0": BlockFormat(32, 22, (0,), _q5_0),
    "Q5_1": BlockFormat(32, 24, (0, 2), _q5_1),
    "Q8_0": BlockFormat(32, 34, (0,), _q8_0),
    "Q4_K": BlockFormat(256, 144, (0, 2), _q4_k),
    "Q5_K": BlockFormat(256, 176, (0, 2), _q5_k),
    "Q6_K": BlockFormat(256, 210, (208,), _q6_k),
}


class QuantisedMatrix:
    """A matrix of a file: its codes, and the numbers that are trained.

    Shapes: the matrix is [n_out, n_in]; `theta` is [n_fields, n_out, n_in / n_weights]. Training moves a dense copy:
    the codes are unpacked once.
    """

    def __init__(self, raw: Bytes, type_name: str, shape: tuple[int, int]) -> None:
        """
        Args:
            raw: the tensor's bytes.
            type_name: as GGUF has it, one of `FORMATS`.
            shape: (n_out, n_in).
        """
        self.format, self.shape = FORMATS[type_name], shape
        self._blocks = raw.reshape(-1, self.format.n_bytes)
        self._per_row = shape[1] // self.format.n_weights
        self.start = np.stack([self._field(offset) for offset in self.format.fields])
        # A minimum that is added as it is may be zero: it moves by the size of its block's scale.
        sizes = np.abs(self.start)
        self.unit = np.broadcast_to(sizes[:1], sizes.shape) if self.format.n_weights == 32 else sizes
        self.theta = np.zeros_like(self.start)

    def _field(self, offset: int) -> Floats:
        halves = np.ascontiguousarray(self._blocks[:, offset : offset + 2]).view(np.float16)
        return halves.astype(F32).reshape(self.shape[0], self._per_row)

    def _fields(self, theta: Floats) -> Floats:
        """[n_fields, n_blocks, 1]"""
        fields = self.start + self.unit * theta
        return fields.astype(F32, copy=False).reshape(len(self.start), -1, 1)

    def dense(self) -> Floats:
        """The matrix itself, [n_out, n_in]."""
        total: Floats | None = None
        for value, basis in zip(self._fields(self.theta), self.format.bases(self._blocks), strict=True):
            part = np.asarray(value if basis is None else basis * value, F32)
            total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        return total.reshape(self.shape)

    def _minima(self) -> Floats | None:
        """What the second field is multiplied with: [n_blocks, n_parts, 1], or None for ones."""
        if self.format.n_weights == 32:
            return None
        minima: Floats = _k_scales(self._blocks[:, 4:16])[1].astype(F32)
        return -minima[..., None]

    def move(self, dense: Floats, theta: Floats) -> None:
        """Set `theta`, and make the dense copy agree with it."""
        old, new = self._fields(self.theta), self._fields(theta)
        ratio = np.divide(new[0], old[0], out=np.ones_like(old[0]), where=old[0] != 0)
        blocks = dense.reshape(-1, self.format.n_weights)
        blocks *= ratio
        if len(new) > 1:
            shift, minima = new[1] - ratio * old[1], self._minima()
            if minima is None:
                blocks += shift
            else:
                parts = blocks.reshape(len(blocks), minima.shape[1], -1)
                parts += shift[..., None] * minima
        self.theta = theta

    def gradient(self, slope: Floats, dense: Floats) -> Floats:
        """The gradient for `theta` from that of the matrix.

        Args:
            slope: of the loss for each weight, [n_out, n_in].
            dense: the matrix as it is, [n_out, n_in]; what its codes give follows from it.
        """
        width, fields = self.format.n_weights, self._fields(self.theta)[..., 0]
        slopes = slope.reshape(-1, width)
        first = np.einsum("ij,ij->i", slopes, dense.reshape(-1, width))
        parts = [first]
        if len(fields) > 1:
            minima = self._minima()
            if minima is None:
                second = slopes.sum(-1)
            else:
                second = (slopes.reshape(len(slopes), minima.shape[1], -1).sum(-1) * minima[..., 0]).sum(-1)
            first -= fields[1] * second
            parts.append(second)
        parts[0] = np.divide(first, fields[0], out=np.zeros_like(first), where=fields[0] != 0)
        gradient: Floats = np.stack(parts).reshape(self.start.shape) * self.unit
        return gradient

    def bytes_with(self, theta: Floats) -> bytes:
        """The tensor as a file holds it, with its numbers moved by `theta`."""
        changed = self._blocks.copy()
        fields = (self.start + self.unit * theta).astype(np.float16)
        for offset, values in zip(self.format.fields, fields, strict=True):
            changed[:, offset : offset + 2] = values.reshape(-1, 1).view(np.uint8)
        return changed.tobytes()
