"""Tiny random ONNX decoders as the two exporters shape them: with one buffer a tensor, or with caches that grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from checkpoints import small_tokenizer
from onnx import TensorProto, helper, numpy_helper

N_EMBD, N_HEADS, N_KV_HEADS, HEAD_DIM, N_FF = 64, 4, 2, 16, 96
CHATML = (
    "{% for m in messages %}<|end|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
)


def write_tiny_onnx(
    folder: Path, *, shared: bool = True, quantised: bool = False, n_layers: int = 2, n_ctx: int = 256, seed: int = 0
) -> Path:
    """A folder with model.onnx, its data, a tokenizer of 300 tokens and a chat template.

    `shared`: attention is GroupQueryAttention. `quantised`: products are MatMulNBits that round activations.
    """
    n_vocab = small_tokenizer(folder) + 3
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "vocab_size": n_vocab, "hidden_size": N_EMBD, "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_KV_HEADS, "intermediate_size": N_FF, "head_dim": HEAD_DIM,
        "num_hidden_layers": n_layers, "max_position_embeddings": n_ctx, "model_type": "llama",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    graph = _Graph(np.random.default_rng(seed), quantised, n_vocab)
    x = graph.node("Gather", [graph.weight("embed", (n_vocab, N_EMBD), 4.0), "input_ids"])
    for layer in range(n_layers):
        attend = graph.fused_attention if shared else graph.plain_attention
        x = graph.node("Add", [x, attend(graph.norm(x), layer, n_ctx)])
        y = graph.norm(x)
        gate = graph.linear(y, N_EMBD, N_FF)
        y = graph.node("Mul", [graph.node("Mul", [gate, graph.node("Sigmoid", [gate])]), graph.linear(y, N_EMBD, N_FF)])
        x = graph.node("Add", [x, graph.linear(y, N_FF, N_EMBD)])
    graph.constant("end", np.array([np.iinfo(np.int64).max]))
    graph.constant("axis", np.array([1]))
    graph.constant("logits_start", np.array([0]))
    x = graph.node("Slice", [graph.norm(x), "logits_start", "end", "axis"])
    graph.linear(x, N_EMBD, n_vocab, output="logits")
    onnx.save_model(
        graph.model(n_vocab, shared), folder / "model.onnx", save_as_external_data=True, location="model.onnx.data",
        size_threshold=1024,
    )  # fmt: skip
    return folder


class _Graph:
    def __init__(self, rng: np.random.Generator, quantised: bool, n_vocab: int) -> None:
        self._rng, self._quantised, self._n_vocab = rng, quantised, n_vocab
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []
        self._inputs = [_value("input_ids", ["b", "n"], TensorProto.INT64)]
        self._inputs.append(_value("attention_mask", ["b", "total"], TensorProto.INT64))
        self._outputs: list[Any] = []
        self._lengths: tuple[str, str] | None = None
        self._mask: str | None = None
        self._n = 0

    def _name(self) -> str:
        self._n += 1
        return f"t{self._n}"

    def node(self, op: str, inputs: list[str], *, output: str | None = None, **attributes: Any) -> str:
        output = output or self._name()
        self._nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, array: Any) -> str:
        self._tensors.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, shape: tuple[int, ...], scale: float) -> str:
        values = (self._rng.standard_normal(shape) * scale / np.sqrt(shape[-1])).astype(np.float32)
        return self.constant(name, values)

    def norm(self, x: str) -> str:
        return self.node("SimplifiedLayerNormalization", [x, self.constant(self._name(), np.ones(N_EMBD, np.float32))],
                         axis=-1, epsilon=1e-5)  # fmt: skip

    def linear(self, x: str, n_in: int, n_out: int, *, output: str | None = None) -> str:
        if not self._quantised:
            return self.node("MatMul", [x, self.weight(self._name(), (n_in, n_out), 2.0)], output=output)
        blocks = -(-n_in // 32)
        packed = self._rng.integers(0, 256, (n_out, blocks, 16), np.uint8)
        scales = (0.05 + 0.05 * self._rng.random((n_out * blocks,))).astype(np.float32)
        return self.node(
            "MatMulNBits", [x, self.constant(self._name(), packed), self.constant(self._name(), scales)],
            output=output, domain="com.microsoft", K=n_in, N=n_out, bits=4, block_size=32, accuracy_level=4,
        )  # fmt: skip

    def _cache(self, layer: int) -> tuple[list[str], list[str]]:
        past, present = (
            [f"{kind}.{layer}.{part}" for part in ("key", "value")] for kind in ("past_key_values", "present")
        )
        for name in past:
            self._inputs.append(_value(name, ["b", N_KV_HEADS, "past", HEAD_DIM]))
        for name in present:
            self._outputs.append(_value(name, ["b", N_KV_HEADS, "total", HEAD_DIM]))
        return past, present

    def fused_attention(self, x: str, layer: int, n_ctx: int) -> str:
        past, present = self._cache(layer)
        q, k, v = (self.linear(x, N_EMBD, heads * HEAD_DIM) for heads in (N_HEADS, N_KV_HEADS, N_KV_HEADS))
        if self._lengths is None:
            total = self.node("ReduceSum", ["attention_mask", self.constant("one_axis", np.array([1]))], keepdims=0)
            held = self.node("Sub", [total, self.constant("one", np.array([1]))])
            width = self.node("Gather", [self.node("Shape", ["attention_mask"]), self.constant("second", np.array(1))])
            self._lengths = tuple(self.node("Cast", [name], to=TensorProto.INT32) for name in (held, width))  # type: ignore[assignment]
            angles = np.arange(n_ctx)[:, None] * 10_000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
            self.constant("cos", np.cos(angles).astype(np.float32))
            self.constant("sin", np.sin(angles).astype(np.float32))
        assert self._lengths is not None
        out = self._name()
        self._nodes.append(helper.make_node(
            "GroupQueryAttention", [q, k, v, *past, *self._lengths, "cos", "sin"], [out, *present],
            domain="com.microsoft", num_heads=N_HEADS, kv_num_heads=N_KV_HEADS, do_rotary=1,
        ))  # fmt: skip
        return self.linear(out, N_HEADS * HEAD_DIM, N_EMBD)

    def plain_attention(self, x: str, layer: int, n_ctx: int) -> str:
        """Concatenated caches and a causal mask from positions; no rotation, as order shows in the mask alone."""
        past, present = self._cache(layer)
        new = []
        for heads in (N_HEADS, N_KV_HEADS, N_KV_HEADS):
            shape = self.constant(self._name(), np.array([0, -1, heads, HEAD_DIM]))
            split = self.node("Reshape", [self.linear(x, N_EMBD, heads * HEAD_DIM), shape])
            new.append(self.node("Transpose", [split], perm=[0, 2, 1, 3]))
        repeated = []
        for name, out, part in zip(past, present, new[1:], strict=True):
            self.node("Concat", [name, part], output=out, axis=2)
            each = [
                self.node("Gather", [out, self.constant(self._name(), np.array([h]))], axis=1) for h in (0, 0, 1, 1)
            ]
            repeated.append(self.node("Concat", each, axis=1))
        scores = self.node("MatMul", [new[0], self.node("Transpose", [repeated[0]], perm=[0, 1, 3, 2])])
        if self._mask is None:
            self._inputs.append(_value("position_ids", ["b", "n"], TensorProto.INT64))
            width = self.node("Gather", [self.node("Shape", ["attention_mask"]), self.constant("second", np.array(1))])
            keys = self.node("Range", [self.constant("zero", np.array(0)), width, self.constant("step", np.array(1))])
            rows = self.node("Unsqueeze", ["position_ids", self.constant("behind", np.array([1, 3]))])
            hidden = self.node("Greater", [keys, rows])
            low = self.constant("low", np.array(-1e9, np.float32))
            self._mask = self.node("Where", [hidden, low, self.constant("nought", np.array(0, np.float32))])
        weights = self.node("Softmax", [self.node("Add", [scores, self._mask])], axis=-1)
        mixed = self.node("Transpose", [self.node("MatMul", [weights, repeated[1]])], perm=[0, 2, 1, 3])
        flat = self.node("Reshape", [mixed, self.constant(self._name(), np.array([0, -1, N_HEADS * HEAD_DIM]))])
        return self.linear(flat, N_HEADS * HEAD_DIM, N_EMBD)

    def model(self, n_vocab: int, shared: bool) -> Any:
        inputs = [*self._inputs, _value("logits_start", [1], TensorProto.INT64)]
        outputs = [_value("logits", ["b", "n_rows", n_vocab]), *self._outputs]
        graph = helper.make_graph(self._nodes, "tiny", inputs, outputs, self._tensors)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)
