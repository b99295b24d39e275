"""A small decoder from its GGUF file in numpy: what it would say, and how its scales should change.

The weights are those of the quantised file, so what is trained is what runs. Architectures: llama,
qwen2, qwen3, and gemma3 with text alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgellm.memory.draft_adapter import quantised_matrix
from edgellm.memory.gguf import GgufHeader, TensorInfo, read_header
from edgellm.memory.quantised import FORMATS, Floats, QuantisedMatrix
from edgellm.runtime.distillation.architecture import DistillationError, Shape
from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.ops import ACTIVATIONS, Attention, Rotation, rms_norm, rms_norm_back
from edgellm.runtime.distillation.rows import Gradients, Rows

_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_GEMMA_LOCAL_BASE = 10_000.0
_HEAD_ROWS = 256  # answer tokens whose logits are held at once


@dataclass(slots=True)
class _Kept:
    """What a layer's forward pass leaves for its backward one: of the rows that learn, but for k and v."""

    x: Floats
    q: Floats
    k: Floats
    v: Floats
    mixed: Floats
    attended: Floats  # what attention adds, before a norm of its own
    middle: Floats
    gate: Floats
    up: Floats
    fed: Floats  # what the feed-forward part adds, before a norm of its own
    raw_q: Floats | None = None  # before the norm of each head
    raw_k: Floats | None = None


class Network:
    """A drafter that can be trained. Threads may call `gradients` and `agreement` at once, not while `take` runs."""

    def __init__(self, header: GgufHeader) -> None:
        self.shape = shape = Shape.of(header)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._header = header
        self.matrices: dict[str, QuantisedMatrix] = {}
        self._weights: dict[str, Floats] = {}
        for name in [f"blk.{layer}.{matrix}" for layer in range(shape.n_layers) for matrix in _MATRICES]:
            self._open_matrix(name)
        self._embedding = self._dense("token_embd.weight")
        self._head = self._dense("output.weight") if "output.weight" in self._tensors else self._embedding
        self._vectors = {
            name: self._dense(name).reshape(-1) for name, tensor in self._tensors.items() if len(tensor.shape) == 1
        }
        self._activate, self._steepness = ACTIVATIONS["gelu" if shape.architecture == "gemma3" else "silu"]
        self._embedding_scale = np.float32(math.sqrt(shape.n_embd) if shape.architecture == "gemma3" else 1.0)

    @classmethod
    def open(cls, path: Path) -> Network:
        """Raises DistillationError: a kind of model or of quantisation that cannot be trained. GgufError, OSError."""
        return cls(read_header(path))

    def _open_matrix(self, name: str) -> None:
        tensor = self._tensor(f"{name}.weight")
        if tensor.type in FORMATS and len(tensor.shape) == 2:
            matrix = quantised_matrix(self._header, tensor)
            self.matrices[tensor.name] = matrix
            self._weights[name] = matrix.dense()
        else:
            self._weights[name] = self._dense(tensor.name)

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise DistillationError(
                f"{self._header.path.name} cannot be trained: it has no {name} (experts, or fused parts)"
            )
        return self._tensors[name]

    def _dense(self, name: str) -> Floats:
        tensor = self._tensor(name)
        if tensor.type in FORMATS:
            return quantised_matrix(self._header, tensor).dense()
        if tensor.type not in ("F32", "F16", "BF16"):
            raise DistillationError(
                f"{self._header.path.name} cannot be trained: {name} is {tensor.type}; take one of {', '.join(FORMATS)}"
            )
        with self._header.path.open("rb") as file:
            file.seek(self._header.data_offset + tensor.offset)
            data = file.read(tensor.n_bytes)
        values: Floats
        if tensor.type == "BF16":
            values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32)
        else:
            values = np.frombuffer(data, "<f4" if tensor.type == "F32" else "<f2").astype(np.float32)
        return values.reshape(tensor.shape[::-1])

    @property
    def n_bytes(self) -> int:
        """What the weights take, dense."""
        arrays = [*self._weights.values(), self._embedding, *self._vectors.values()]
        return sum(array.nbytes for array in arrays) + (self._head.nbytes if self._head is not self._embedding else 0)

    def changes(self) -> dict[str, Floats]:
        """What was trained, tensor by tensor."""
        return {name: matrix.theta for name, matrix in self.matrices.items()}

    def take(self, changes: Mapping[str, Floats]) -> None:
        """Move to such a state."""
        for name, theta in changes.items():
            self.matrices[name].move(self._weights[name.removesuffix(".weight")], theta)

    def _attention(self, rows: Rows, layer: int) -> Attention:
        return Attention(rows.texts, rows.lasts, 1 / math.sqrt(self.shape.head_dim), self.shape.window_of(layer))

    def _rotation(self, rows: Rows, layer: int) -> Rotation:
        shape = self.shape
        base = _GEMMA_LOCAL_BASE if shape.window_of(layer) else shape.base
        n_rotated = int(self._header.hparam("rope.dimension_count", shape.head_dim))
        frequencies = (base ** (-np.arange(0, n_rotated, 2) / n_rotated)).astype(np.float32)
        if "rope_freqs.weight" in self._vectors:
            frequencies = frequencies / self._vectors["rope_freqs.weight"]
        return Rotation.of(rows.positions, frequencies, interleaved=shape.architecture == "llama")

    def _rotations(self, rows: Rows) -> list[Rotation]:
        made = {w: self._rotation(rows, i) for i, w in enumerate(map(self.shape.window_of, range(self.shape.n_layers)))}
        return [made[self.shape.window_of(layer)] for layer in range(self.shape.n_layers)]

    def _normed(self, x: Floats, name: str) -> Floats:
        """As it is where the model has no such norm."""
        return rms_norm(x, self._vectors[name], self.shape.eps)[0] if name in self._vectors else x

    def _normed_back(self, slope: Floats, x: Floats, name: str) -> Floats:
        if name not in self._vectors:
            return slope
        weight = self._vectors[name]
        return rms_norm_back(slope, x, rms_norm(x, weight, self.shape.eps)[1], weight)

    def _product(self, x: Floats, name: str) -> Floats:
        y = x @ self._weights[name].T
        bias = self._vectors.get(f"{name}.bias")
        return y if bias is None else np.add(y, bias, out=y)

    def _product_back(self, slope: Floats, x: Floats, name: str, found: Gradients) -> Floats:
        matrix, weight = self.matrices.get(f"{name}.weight"), self._weights[name]
        if matrix is not None:
            found.thetas[f"{name}.weight"] = matrix.gradient(slope.T @ x, weight)
        return slope @ weight

    def _heads(self, x: Floats) -> Floats:
        return x.reshape(len(x), -1, self.shape.head_dim)

    def _layer(
        self, layer: int, x: Floats, rows: Rows, attention: Attention, rotation: Rotation, kept: list[_Kept] | None
    ) -> Floats:
        """The rows behind a layer. What its backward pass needs goes to `kept`."""
        at, last = f"blk.{layer}.", rows.answered
        normed = self._normed(x, f"{at}attn_norm.weight")
        raw_q, raw_k, v = (self._heads(self._product(normed, at + name)) for name in ("attn_q", "attn_k", "attn_v"))
        q = rotation.turn(self._normed(raw_q, f"{at}attn_q_norm.weight"))
        k = rotation.turn(self._normed(raw_k, f"{at}attn_k_norm.weight"))
        mixed = attention.forward(q, k, v).reshape(len(x), -1)
        attended = self._product(mixed, at + "attn_output")
        middle = x + self._normed(attended, f"{at}post_attention_norm.weight")
        normed = self._normed(middle, f"{at}ffn_norm.weight")
        gate, up = self._product(normed, at + "ffn_gate"), self._product(normed, at + "ffn_up")
        fed = self._product(self._activate(gate) * up, at + "ffn_down")
        if kept is not None:
            one = _Kept(
                x[last], q[last], k, v, mixed[last], attended[last], middle[last], gate[last], up[last], fed[last]
            )
            if f"{at}attn_q_norm.weight" in self._vectors:
                one.raw_q, one.raw_k = raw_q[last], raw_k[last]
            kept.append(one)
        return middle + self._normed(fed, f"{at}post_ffw_norm.weight")

    def _layer_back(
        self, layer: int, slope: Floats, kept: _Kept, attention: Attention, rotation: Rotation, found: Gradients
    ) -> Floats:
        at = f"blk.{layer}."
        active = self._activate(kept.gate)
        fed = self._normed_back(slope, kept.fed, f"{at}post_ffw_norm.weight")
        inner = self._product_back(fed, active * kept.up, at + "ffn_down", found)
        normed = self._normed(kept.middle, f"{at}ffn_norm.weight")
        back = self._product_back(inner * active, normed, at + "ffn_up", found)
        back += self._product_back(inner * kept.up * self._steepness(kept.gate), normed, at + "ffn_gate", found)
        slope = slope + self._normed_back(back, kept.middle, f"{at}ffn_norm.weight")
        attended = self._normed_back(slope, kept.attended, f"{at}post_attention_norm.weight")
        mixed = self._heads(self._product_back(attended, kept.mixed, at + "attn_output", found))
        dq, dk, dv = attention.backward(mixed, kept.q, kept.k, kept.v)
        dq, dk = rotation.turn(dq, back=True), rotation.turn(dk, back=True)
        if kept.raw_q is not None and kept.raw_k is not None:
            dq = self._normed_back(dq, kept.raw_q, f"{at}attn_q_norm.weight")
            dk = self._normed_back(dk, kept.raw_k, f"{at}attn_k_norm.weight")
        normed = self._normed(kept.x, f"{at}attn_norm.weight")
        back = self._product_back(dq.reshape(len(normed), -1), normed, at + "attn_q", found)
        back += self._product_back(dk.reshape(len(normed), -1), normed, at + "attn_k", found)
        back += self._product_back(dv.reshape(len(normed), -1), normed, at + "attn_v", found)
        return slope + self._normed_back(back, kept.x, f"{at}attn_norm.weight")

    def _forward(self, rows: Rows, rotations: Sequence[Rotation], kept: list[_Kept] | None = None) -> Floats:
        """The last layer's output behind which answers come, [n_answered, n_embd]."""
        x = self._embedding[rows.tokens] * self._embedding_scale
        for layer, rotation in enumerate(rotations):
            x = self._layer(layer, x, rows, self._attention(rows, layer), rotation, kept)
        return x[rows.answered]

    def gradients(self, samples: Sequence[Sample]) -> Gradients:
        """Cross-entropy of the answers and its slope, summed over their tokens.

        What a question's own tokens hold is taken as given: it costs a third of the pass, and is not what the drafter
        gets wrong.
        """
        rows, found = Rows.of(samples), Gradients()
        rotations, kept = self._rotations(rows), list[_Kept]()
        slope = self._loss(self._forward(rows, rotations, kept), rows.answers, found)
        for layer in reversed(range(self.shape.n_layers)):
            rotation = rotations[layer].at(rows.answered)
            slope = self._layer_back(layer, slope, kept.pop(), self._attention(rows, layer), rotation, found)
        return found

    def _loss(self, last: Floats, answers: NDArray[np.int32], found: Gradients) -> Floats:
        """Adds the loss to `found`; the slope for the last layer's rows."""
        normed, slope = self._normed(last, "output_norm.weight"), np.empty_like(last)
        for start in range(0, len(last), _HEAD_ROWS):
            part, wanted = slice(start, start + _HEAD_ROWS), answers[start : start + _HEAD_ROWS]
            logits = normed[part] @ self._head.T
            each = np.arange(len(wanted))
            found.n_right += int((logits.argmax(-1) == wanted).sum())
            logits -= logits.max(-1, keepdims=True)
            np.exp(logits, out=logits)
            logits /= logits.sum(-1, keepdims=True)
            found.loss -= float(np.log(logits[each, wanted] + np.float32(1e-20)).sum())
            logits[each, wanted] -= 1
            slope[part] = logits @ self._head
        found.n_tokens += len(answers)
        return self._normed_back(slope, last, "output_norm.weight")

    def agreement(self, samples: Sequence[Sample]) -> list[NDArray[np.bool_]]:
        """For each sample, whether the drafter's likeliest token is the answer's, for each of its tokens."""
        rows = Rows.of(samples)
        normed = self._normed(self._forward(rows, self._rotations(rows)), "output_norm.weight")
        said = [
            (normed[start : start + _HEAD_ROWS] @ self._head.T).argmax(-1)
            for start in range(0, len(normed), _HEAD_ROWS)
        ]
        hits = np.concatenate(said) == rows.answers
        return np.split(hits, np.cumsum(rows.n_answers)[:-1])
