"""What an ONNX graph takes on onnxruntime's CPU provider: weights, cache with its own type, temporaries.

onnxruntime does not say what it will allocate, so the terms were measured (onnxruntime 1.32.0, arena off, x86-64;
docs/onnx.md says how well they hold).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.memory.buffer_sizes import BufferSizes
from edgellm.memory.cache_layers import AttentionLayers
from edgellm.memory.context import ContextSettings
from edgellm.memory.onnx_graph import OnnxFacts, OnnxGraph, read_graph
from edgellm.memory.shape import ModelShape, UnknownShape
from edgellm.memory.units import MIB

ERROR_SHARE = 0.03  # the worst that predictions of graphs were off (docs/onnx.md)
LIBRARY_BYTES = 20 * MIB  # onnxruntime's own code and tables
SESSION_BYTES = 12 * MIB
NODE_BYTES = 3_200  # of a session, an operator
NEARBY_BYTES = 64 * 1024  # of a mapped table, around a row that is looked up: Linux maps 16 pages at once
TOKENS_PER_WORD = 3  # of a text, for each one that is not among those before
SCALE_COPIES = 1.4  # beside those of the file: packed with the weights, and the sums of their blocks
VOCABULARY_BASE_BYTES = 8_000_000
VOCABULARY_TOKEN_BYTES = 645  # the `tokenizers` package's tables and our own, a token
GROWN_COPIES = 3  # of a cache that grows: what goes in, what comes out, what is being put together

N_BATCH_GROWN = 64  # more takes up to three times the memory and no less time

_ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1}


def facts_of(graph: OnnxGraph) -> OnnxFacts:
    """Raises OnnxError where the graph does not say its cache's sizes."""
    sizes = {tensor.name: tensor.n_bytes for tensor in graph.tensors}
    # A weight's users by name, those behind a copy in another layout beside those of the weight itself.
    copies = {
        node.outputs[0]: node.inputs[0]
        for node in graph.nodes
        if node.op in ("Transpose", "Reshape") and node.inputs[0] in sizes
    }
    users: dict[str, set[str]] = {name: set() for name in sizes}
    for node in graph.nodes:
        for name in node.inputs:
            if node.outputs[0] not in copies and copies.get(name, name) in users:
                users[copies.get(name, name)].add(node.op)
    used_directly = {name for node in graph.nodes if node.outputs[0] not in copies for name in node.inputs}
    quantised = [node for node in graph.nodes if node.op == "MatMulNBits"]

    return OnnxFacts(
        kv_row_bytes=sum(2 * pair.n_heads * pair.head_dim * _ITEM_BYTES.get(pair.type, 4) for pair in graph.kv),
        kv_type=graph.kv[0].type,
        shares_buffer=graph.shares_buffer,
        picks_rows="logits_start" in graph.inputs,
        n_nodes=len(graph.nodes),
        table_bytes=sum(
            sizes[name] for name, ops in users.items() if ops and all(op.startswith("Gather") for op in ops)
        ),
        folded_bytes=sum(sizes[name] for name in used_directly & set(copies.values())),
        scale_bytes=sum(sizes.get(node.inputs[2], 0) for node in quantised),
        largest_bytes=max(
            (sizes[name] for name, ops in users.items() if any(op.startswith("MatMul") for op in ops)), default=0
        ),
    )


def shape_of(graph: OnnxGraph, config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape of an exported model.

    Raises:
        OnnxError: the graph does not say its cache's sizes.
        UnknownShape: config.json lacks the model's widths.
    """
    sizes = sizes_in(config)
    if not sizes["n_embd"] or not sizes["n_heads"]:
        raise UnknownShape(f"{name}: config.json lacks hidden_size or num_attention_heads: copy the model's there")
    facts, kv = facts_of(graph), graph.kv
    width = kv[0].n_heads * kv[0].head_dim
    return ModelShape(
        name=name,
        architecture="onnx",
        quantisation=graph.quantisation,
        n_layers=len(kv),
        n_embd=sizes["n_embd"],
        n_heads=sizes["n_heads"],
        n_vocab=graph.n_vocab,
        n_ctx_train=sizes["n_ctx_train"] or 4096,
        n_params=round(8 * graph.weight_bytes / graph.weight_bits),
        q_width=sizes["n_heads"] * kv[0].head_dim,
        n_ff=sizes["n_ff"],
        n_experts_used=0,
        attention=(AttentionLayers(len(kv), width, width, kv[0].head_dim),),
        state_elements=0,
        weight_bytes=graph.weight_bytes,
        lookup_bytes=0,
        expert_bytes=0,
        n_experts=0,
        matrix_bytes=(),
        tied=None,
        n_merges=0,
        exact=True,
        onnx=facts,
    )


def read_shape(path: Path) -> ModelShape:
    """The shape of a graph, or of the one in a folder, with the sizes of the config.json beside it.

    Raises:
        OnnxError: no graph, a damaged one, or weights that are missing.
        UnknownShape: config.json is missing, damaged, or lacks the model's widths.
    """
    graph_path = path / "model.onnx" if path.is_dir() else path
    config_path = graph_path.with_name("config.json")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        sizes = sizes_in(config)
    except FileNotFoundError as error:
        raise UnknownShape(f"{config_path} is missing: copy it there from the model's repository") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UnknownShape(f"{config_path} is damaged ({error}): copy it again from the model's repository") from error
    graph = read_graph(graph_path, head_dim=sizes["head_dim"])
    graph.check_data()
    return shape_of(graph, config, path.resolve().name.removesuffix(".onnx"))


def estimate(shape: ModelShape, settings: ContextSettings) -> BufferSizes:
    """Sizes of a graph in one context."""
    facts = shape.onnx
    assert facts is not None
    n_embd, n_ff, n_heads, n_vocab = shape.n_embd, shape.n_ff, shape.n_heads, shape.n_vocab
    tokens = min(batch(settings, shares_buffer=facts.shares_buffer), settings.n_ctx)
    scores = n_heads * tokens * settings.n_ctx * 4
    rows = settings.n_outputs if facts.picks_rows else tokens
    kv_bytes = facts.kv_row_bytes * (settings.n_ctx + 1) * (1 if facts.shares_buffer else GROWN_COPIES)
    activations = tokens * (8 * n_ff + 10 * n_embd) * 4
    compute = activations + (1 if facts.shares_buffer else 4) * scores + _looked_up_bytes(facts.table_bytes, settings)
    # While it loads, a session holds its largest weight twice; later memory for the rest is had from that.
    loading = max(0, facts.largest_bytes - kv_bytes - compute)
    return BufferSizes(
        weights_bytes=weights_bytes(shape),
        repacked_bytes=0,
        kv_bytes=kv_bytes,
        compute_bytes=compute + session_bytes(facts) + loading,
        output_bytes=max(rows, 2) * n_vocab * 4,
        state_bytes=0,
        exact=False,
    )


def batch(settings: ContextSettings, *, shares_buffer: bool) -> int:
    """Tokens of a prompt computed at once."""
    return settings.n_ubatch if shares_buffer else min(settings.n_ubatch, N_BATCH_GROWN)


def _looked_up_bytes(table_bytes: int, settings: ContextSettings) -> int:
    """What is resident of a mapped table once a context is full, its rows being hit at random."""
    if not table_bytes:
        return 0
    n_rows = settings.n_ctx / TOKENS_PER_WORD
    return round(-table_bytes * math.expm1(-n_rows * NEARBY_BYTES / table_bytes))


def weights_bytes(shape: ModelShape) -> int:
    """What is resident of the weights, packed for the products."""
    facts = shape.onnx
    assert facts is not None
    return round(shape.weight_bytes - facts.table_bytes + facts.folded_bytes + SCALE_COPIES * facts.scale_bytes)


def session_bytes(facts: OnnxFacts) -> int:
    return SESSION_BYTES + NODE_BYTES * facts.n_nodes


def vocabulary_bytes(n_vocab: int) -> int:
    return VOCABULARY_BASE_BYTES + VOCABULARY_TOKEN_BYTES * n_vocab


def cache_formula(facts: OnnxFacts, settings: ContextSettings) -> str:
    copies = "" if facts.shares_buffer else f" x {GROWN_COPIES} copies while it grows"
    return f"{settings.n_ctx + 1:,} tokens x {facts.kv_row_bytes:,} B{copies}, {facts.kv_type} as exported"


def weights_formula(shape: ModelShape) -> str:
    facts = shape.onnx
    assert facts is not None
    terms = [f"{shape.weight_bytes:,} B, {shape.quantisation}"]
    if facts.table_bytes:
        terms.append(f"- {facts.table_bytes:,} B looked up in the file")
    if facts.folded_bytes:
        terms.append(f"+ {facts.folded_bytes:,} B held in two layouts")
    if facts.scale_bytes:
        terms.append(f"+ {SCALE_COPIES} x {facts.scale_bytes:,} B of scales, packed and summed")
    return " ".join(terms)


def lines(role: str, shape: ModelShape, settings: ContextSettings, sizes: BufferSizes) -> list[tuple[str, int, str]]:
    """(name, bytes, formula) of a model's lines in a plan."""
    facts = shape.onnx
    assert facts is not None
    n_batch = batch(settings, shares_buffer=facts.shares_buffer)
    return [
        (f"{role} weights", sizes.weights_bytes, weights_formula(shape)),
        (
            f"{role} vocabulary",
            vocabulary_bytes(shape.n_vocab),
            f"{VOCABULARY_BASE_BYTES:,} B + {shape.n_vocab:,} tokens x {VOCABULARY_TOKEN_BYTES} B",
        ),
        (f"{role} cache", sizes.kv_bytes, cache_formula(facts, settings)),
        (
            f"{role} compute",
            sizes.compute_bytes,
            f"session {session_bytes(facts):,} B + activations and scores of {n_batch} tokens",
        ),
        (f"{role} logits", sizes.output_bytes, f"{settings.n_outputs} rows x {shape.n_vocab:,} logits x 4 B"),
    ]


def sizes_in(config: Mapping[str, Any]) -> dict[str, int]:
    """`n_embd`, `n_ff`, `n_heads` and so on of a config.json, 0 where it does not say."""
    names = {
        "n_layers": "num_hidden_layers", "n_embd": "hidden_size", "n_ff": "intermediate_size",
        "n_heads": "num_attention_heads", "n_ctx_train": "max_position_embeddings", "head_dim": "head_dim",
    }  # fmt: skip
    found = {name: int(config.get(key) or 0) for name, key in names.items()}
    found["head_dim"] = found["head_dim"] or math.floor(found["n_embd"] / max(found["n_heads"], 1))
    return found
