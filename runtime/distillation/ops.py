"""The parts of a transformer in numpy, forward and backward.

Rows are the tokens of several texts, one after another: [n_rows, ...]. A backward function takes the slope of the loss
for what the forward one gave, and gives it for what that took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.quantised import Floats

_GELU, _CUBIC = math.sqrt(2 / math.pi), np.float32(0.044715)


def rms_norm(x: Floats, weight: Floats, eps: float) -> tuple[Floats, Floats]:
    """(normed [..., n], the factor [..., 1] that backward needs)."""
    factor = 1 / np.sqrt(np.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1] + np.float32(eps))
    return x * factor * weight, factor


def rms_norm_back(slope: Floats, x: Floats, factor: Floats, weight: Floats) -> Floats:
    slope = slope * weight
    mean = np.einsum("...i,...i->...", slope, x)[..., None] / x.shape[-1]
    back: Floats = factor * (slope - x * (factor * factor * mean))
    return back


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary positions (RoPE, arXiv:2104.09864) of rows: the angles' cosines and sines, [n_rows, 1, n_rotated / 2]."""

    cos: Floats
    sin: Floats
    interleaved: bool  # pairs are neighbours, as in llama; otherwise halves

    @classmethod
    def of(cls, positions: NDArray[np.int32], frequencies: Floats, *, interleaved: bool) -> Rotation:
        angles = positions[:, None].astype(np.float32) * frequencies
        return cls(np.cos(angles)[:, None], np.sin(angles)[:, None], interleaved)

    def at(self, rows: NDArray[np.int64]) -> Rotation:
        """Of some of the rows."""
        return Rotation(self.cos[rows], self.sin[rows], self.interleaved)

    def turn(self, x: Floats, *, back: bool = False) -> Floats:
        """[n_rows, n_heads, head_dim], turned by each row's angles, or back."""
        sin, half = (-self.sin if back else self.sin), self.cos.shape[-1]
        first = slice(0, 2 * half, 2) if self.interleaved else slice(0, half)
        second = slice(1, 2 * half, 2) if self.interleaved else slice(half, 2 * half)
        out = np.empty_like(x)
        a, b = x[..., first], x[..., second]
        out[..., first] = a * self.cos - b * sin
        out[..., second] = a * sin + b * self.cos
        out[..., 2 * half :] = x[..., 2 * half :]
        return out


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention within each text; several query heads share a key head (GQA).

    Only a text's last rows learn: what its first ones hold is taken as given by the backward pass, which is then given
    the last rows of each text alone.
    """

    texts: Sequence[slice]  # rows of each
    lasts: Sequence[slice]  # the last rows of each, counted among the last rows of all
    scale: float
    window: int = 0  # tokens that a row sees, itself included; 0 for all before it

    def _scores(self, q: Floats, k: Floats, n_last: int) -> Floats:
        """Softmax of one text's products: q [n_kv, group * n_last, d], k [n_kv, n, d] -> [n_kv, group * n_last, n]."""
        n = k.shape[1]
        scores = (q @ k.transpose(0, 2, 1)).reshape(k.shape[0], -1, n_last, n)
        scores *= np.float32(self.scale)
        place = np.arange(n - n_last, n)[:, None] - np.arange(n)  # how far back a token lies
        hidden = (place < 0) | (place >= self.window) if self.window else place < 0
        np.putmask(scores, np.broadcast_to(hidden, scores.shape), np.float32(-1e9))
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        return scores.reshape(k.shape[0], -1, n)

    @staticmethod
    def _grouped(x: Floats, n_kv: int) -> Floats:
        """[n, n_heads, d] -> [n_kv, group * n, d]"""
        d = x.shape[-1]
        return np.ascontiguousarray(x.transpose(1, 0, 2)).reshape(n_kv, -1, d)

    @staticmethod
    def _ungrouped(x: Floats, n: int) -> Floats:
        """[n_kv, group * n, d] -> [n, n_heads, d]"""
        return x.reshape(-1, n, x.shape[-1]).transpose(1, 0, 2)

    def forward(self, q: Floats, k: Floats, v: Floats) -> Floats:
        """[n_rows, n_heads, d], and twice [n_rows, n_kv, d] -> [n_rows, n_heads, d]"""
        out, n_kv = np.empty_like(q), k.shape[1]
        for rows in self.texts:
            n = rows.stop - rows.start
            scores = self._scores(self._grouped(q[rows], n_kv), k[rows].transpose(1, 0, 2), n)
            out[rows] = self._ungrouped(scores @ v[rows].transpose(1, 0, 2), n)
        return out

    def backward(self, slope: Floats, q: Floats, k: Floats, v: Floats) -> tuple[Floats, Floats, Floats]:
        """Slopes for the last rows of q, k and v. Scores are computed again: to keep them would cost n squared a layer.

        Args:
            slope, q: of the last rows, [n_lasts, n_heads, d].
            k, v: of all rows, [n_rows, n_kv, d].
        """
        n_kv = k.shape[1]
        dq = np.empty_like(q)
        dk = np.empty_like(k, shape=(len(q), *k.shape[1:]))
        dv = np.empty_like(v, shape=(len(q), *v.shape[1:]))
        for rows, last in zip(self.texts, self.lasts, strict=True):
            n = last.stop - last.start
            queries, keys, values = self._grouped(q[last], n_kv), k[rows].transpose(1, 0, 2), v[rows].transpose(1, 0, 2)
            scores, slopes = self._scores(queries, keys, n), self._grouped(slope[last], n_kv)
            dv[last] = (scores[..., -n:].transpose(0, 2, 1) @ slopes).transpose(1, 0, 2)
            change = (slopes @ values.transpose(0, 2, 1)).astype(np.float32, copy=False)
            change -= np.einsum("...i,...i->...", change, scores)[..., None]
            change *= scores
            change *= np.float32(self.scale)
            dq[last] = self._ungrouped(change @ keys, n)
            dk[last] = (change[..., -n:].transpose(0, 2, 1) @ queries).transpose(1, 0, 2)
        return dq, dk, dv


def silu(x: Floats) -> Floats:
    return x * _gate(x)


def silu_slope(x: Floats) -> Floats:
    gate = _gate(x)
    return gate * (1 + x * (1 - gate))


def _gate(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # one part in infinity is zero
        gate: Floats = np.exp(-x)
    gate += 1
    np.reciprocal(gate, out=gate)
    return gate


def gelu(x: Floats) -> Floats:
    """As ggml has it: the approximation by a hyperbolic tangent."""
    return x * (1 + _bend(x)) * np.float32(0.5)


def gelu_slope(x: Floats) -> Floats:
    tanh = _bend(x)
    inner = np.float32(_GELU) * (1 + 3 * _CUBIC * x * x)
    slope: Floats = (1 + tanh) / 2 + x * (1 - tanh * tanh) * inner / 2
    return slope


def _bend(x: Floats) -> Floats:
    tanh: Floats = np.tanh(np.float32(_GELU) * (x + _CUBIC * x * x * x))
    return tanh


ACTIVATIONS: dict[str, tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]] = {  # each with its slope
    "silu": (silu, silu_slope),
    "gelu": (gelu, gelu_slope),
}
