"""A decoder from its GGUF file in torch, for makers of adapters who have a GPU: what talks and what is taught.

Architectures and shapes are those of `edgellm.runtime.distillation`; the weights are the quantised file's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgellm.memory.draft_adapter import quantised_matrix
from edgellm.memory.gguf import GgufHeader, TensorInfo
from edgellm.memory.quantised import FORMATS
from edgellm.runtime.distillation.architecture import Shape

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
GEMMA_LOCAL_BASE = 10_000.0
ROWS_AT_ONCE = 8192  # of a matrix that is unpacked, which bounds the memory

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q [..., n_heads, d], k and v [..., n_kv, d]
Turns = dict[int, tuple[Tensor, Tensor]]  # window -> cosines and sines of positions


class Decoder:
    """The arithmetic of a decoder; sums along the residual are in single precision."""

    def __init__(self, header: GgufHeader, device: str, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype = Shape.of(header), device, dtype
        self.is_gemma = self.shape.architecture == "gemma3"
        self.n_rotated = int(header.hparam("rope.dimension_count", self.shape.head_dim))
        wanted = [tensor for tensor in header.tensors if len(tensor.shape) == 2]
        with ThreadPoolExecutor() as pool:
            dense = pool.map(lambda tensor: self.unpack(header, tensor), wanted)
            self.matrices = {tensor.name: one for tensor, one in zip(wanted, dense, strict=True)}
        self.vectors = {
            tensor.name: torch.from_numpy(plain(header, tensor).reshape(-1).astype(np.float32)).to(device)
            for tensor in header.tensors
            if len(tensor.shape) == 1
        }
        self.embedding = self.matrices["token_embd.weight"]
        self.head = self.matrices.get("output.weight", self.embedding)

    def unpack(self, header: GgufHeader, tensor: TensorInfo) -> Tensor:
        if tensor.type not in FORMATS:
            return torch.from_numpy(plain(header, tensor).astype(np.float32)).to(self.device, self.dtype)
        return torch.cat([torch.from_numpy(part).to(self.device, self.dtype) for part in parts(header, tensor)])

    def turns(self, positions: Tensor) -> Turns:
        """Of positions [...]; the cosines are [..., 1, n_rotated / 2]."""
        shape, found = self.shape, {}
        for window in {shape.window_of(layer) for layer in range(shape.n_layers)}:
            base = GEMMA_LOCAL_BASE if window else shape.base
            steps = torch.arange(0, self.n_rotated, 2, device=self.device, dtype=torch.float32) / self.n_rotated
            frequencies = base**-steps
            if "rope_freqs.weight" in self.vectors:
                frequencies = frequencies / self.vectors["rope_freqs.weight"]
            angles = positions[..., None, None].float() * frequencies
            found[window] = (angles.cos(), angles.sin())
        return found

    def embed(self, tokens: Tensor) -> Tensor:
        rows = self.embedding[tokens].float()
        return rows * math.sqrt(self.shape.n_embd) if self.is_gemma else rows

    def layer(self, layer: int, x: Tensor, turns: Turns, attend: Attend) -> Tensor:
        """The rows [..., n_embd] behind a layer."""
        at, turn = f"blk.{layer}.", turns[self.shape.window_of(layer)]
        normed = self.normed(x, f"{at}attn_norm")
        q, k, v = (self.product(normed, at + name).unflatten(-1, (-1, self.shape.head_dim)) for name in MATRICES[:3])
        q, k = (
            self.turned(self.normed(q, f"{at}attn_q_norm"), turn),
            self.turned(self.normed(k, f"{at}attn_k_norm"), turn),
        )
        mixed = self.product(attend(layer, q, k, v).flatten(-2), at + "attn_output")
        x = x + self.normed(mixed, f"{at}post_attention_norm").float()
        normed = self.normed(x, f"{at}ffn_norm")
        gate, up = self.product(normed, at + "ffn_gate"), self.product(normed, at + "ffn_up")
        active = F.gelu(gate, approximate="tanh") if self.is_gemma else F.silu(gate)
        return x + self.normed(self.product(active * up, at + "ffn_down"), f"{at}post_ffw_norm").float()

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(self.normed(x, "output_norm"), self.head)

    def normed(self, x: Tensor, name: str) -> Tensor:
        """As it is where the model has no such norm."""
        weight = self.vectors.get(f"{name}.weight")
        if weight is None:
            return x
        return F.rms_norm(x.float(), weight.shape, weight, self.shape.eps).to(self.dtype)

    def product(self, x: Tensor, name: str) -> Tensor:
        bias = self.vectors.get(f"{name}.bias")
        return F.linear(x, self.matrices[f"{name}.weight"], None if bias is None else bias.to(self.dtype))

    def turned(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Rotary positions; pairs are neighbours in llama, halves elsewhere."""
        cos, sin = turn
        rows = x.float()
        if self.shape.architecture == "llama":
            a, b = rows[..., 0 : self.n_rotated : 2], rows[..., 1 : self.n_rotated : 2]
            out = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        else:
            a, b = rows[..., : self.n_rotated // 2], rows[..., self.n_rotated // 2 : self.n_rotated]
            out = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        return torch.cat((out, rows[..., self.n_rotated :]), -1).to(x.dtype)

    def attend_within(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of whole texts, [n_sequences, n, n_heads, d]."""
        n, window = q.shape[1], self.shape.window_of(layer)
        group = q.shape[2] // k.shape[2]
        q, k, v = (one.transpose(1, 2) for one in (q, k, v))
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if not window or n <= window:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        place = torch.arange(n, device=q.device)
        back = place[:, None] - place
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back < window)).transpose(1, 2)


def parts(header: GgufHeader, tensor: TensorInfo) -> Iterator[np.ndarray]:
    """A quantised matrix's rows, some at a time."""
    whole = quantised_matrix(header, tensor)
    n_blocks = tensor.shape[0] // whole.format.n_weights
    for start in range(0, tensor.shape[1], ROWS_AT_ONCE):
        n = min(ROWS_AT_ONCE, tensor.shape[1] - start)
        raw = whole._blocks[start * n_blocks : (start + n) * n_blocks]
        yield type(whole)(raw, tensor.type, (n, tensor.shape[0])).dense()


def plain(header: GgufHeader, tensor: TensorInfo) -> np.ndarray:
    with header.path.open("rb") as file:
        file.seek(header.data_offset + tensor.offset)
        data = file.read(tensor.n_bytes)
    if tensor.type == "BF16":
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view(np.float32)
    else:
        values = np.frombuffer(data, "<f4" if tensor.type == "F32" else "<f2").astype(np.float32)
    return values.reshape(tensor.shape[::-1])
