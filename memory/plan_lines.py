"""The lines of a plan that follow from one model: weights, vocabulary, caches, temporaries, rows of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgellm.memory import buffers, kv
from edgellm.memory.buffer_sizes import BufferSizes
from edgellm.memory.context import HEAD_REACH, ContextSettings
from edgellm.memory.drafting_budgets import NGRAM_BYTES, STORE_BYTES, conversation_bytes
from edgellm.memory.shape import ModelShape

Loading = Literal["mapped", "copied", "packed"]
"""mapped: the file's own pages; copied: read into memory; packed: rearranged by our kernels, originals let go."""

# Measured on Linux x86-64, CPython 3.11, numpy 2.4, llama-cpp-python 0.3.36 (docs/memory.md says how).
VOCABULARY_BASE_BYTES = 3_600_000
VOCABULARY_TOKEN_BYTES = 166  # the engine's and our own tables, a token
VOCABULARY_MERGE_BYTES = 141
# Our kernels' layout against the file's; other types keep their size.
PACKED_GROWTH = {"Q4_K": 4 / 144, "Q5_K": 4 / 176, "IQ4_XS": 2 / 136}
PACKED_TYPES = {  # that our kernels take
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "IQ4_XS",
    "IQ3_S", "IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "TQ1_0", "TQ2_0", "Q1_0", "F16", "BF16",
}  # fmt: skip
_ROW_BYTES = 12  # a token's, in sampling's view of a row: id and weight
_THREAD_BYTES = 32  # likewise, in a thread that keeps what it worked with; measured on three vocabularies


@dataclass(frozen=True, slots=True)
class PairSettings:
    """How a target and its drafter run. Sizes are tokens."""

    target: ContextSettings
    n_draft: int = 0
    drafter: ContextSettings | None = None  # None: no draft model
    copy: bool = True  # draft from the conversation itself; costs a table, no model
    loading: Loading = "mapped"
    repack: bool = False  # let the engine rearrange weights for its fast kernels


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    n_bytes: int
    formula: str
    device: str = ""  # the accelerator whose memory it is; "": the machine's


def model_lines(
    role: str, shape: ModelShape, context: ContextSettings, sizes: BufferSizes, settings: PairSettings
) -> list[Line]:
    if shape.onnx is not None:
        from edgellm.memory import onnx_plan

        return [Line(*line) for line in onnx_plan.lines(role, shape, context, sizes)]
    return [
        _weights(role, shape, context, sizes, settings.loading),
        *([Line("adapters", shape.adapter_bytes, "as they lie in their files")] if shape.adapter_bytes else ()),
        *([] if shape.head_of else [_vocabulary(role, shape)]),
        Line(f"{role} cache", sizes.kv_bytes, _formula(shape, kv.cache_formula(shape, context), sizes)),
        *(_hidden_rows(role, shape, context, settings) if shape.head_of else _saved_states(role, context, sizes)),
        _compute(role, shape, context, sizes),
        Line(f"{role} logits", sizes.output_bytes, buffers.output_formula(shape, context)),
        *_on_accelerators(role, shape, context, sizes, settings.loading),
    ]


def _on_accelerators(
    role: str, shape: ModelShape, context: ContextSettings, sizes: BufferSizes, loading: Loading
) -> list[Line]:
    """What lies in the memory of other devices; the lines before have the processor's share."""
    layers = dict(context.placed)
    packs = context.head_stays and loading == "packed"  # workers do, as this machine does
    how = "sized by llama.cpp" if sizes.exact else "by its share of the layers"
    return [
        Line(f"{role} {part} on {each.device}", n_bytes, f"{layers.get(each.device, 0)} layers, {how}", each.device)
        for each in sizes.devices
        for part, n_bytes in (
            ("weights", each.weights_bytes + (_grown(shape, each.weights_bytes) if packs else 0)),
            ("cache", each.kv_bytes),
            ("compute", each.compute_bytes),
        )
    ]


def _saved_states(role: str, context: ContextSettings, sizes: BufferSizes) -> list[Line]:
    """Copies of a recurrent state that a text is cut back to, beside what the engine keeps."""
    n, size = context.n_saved_states, sizes.state_bytes
    return [Line(f"{role} states", n * size, f"{n} copies x {size:,} B")] if n * size else []


def _grown(shape: ModelShape, n_bytes: int) -> int:
    """What our kernels' layout takes more for so many bytes of a model's weights."""
    doubled = [shape.tied] if shape.tied and shape.tied[0] in PACKED_TYPES else []
    whole = sum(size * PACKED_GROWTH.get(kind, 0.0) for kind, size in [*shape.matrix_bytes, *doubled])
    return int(whole * n_bytes / max(shape.weight_bytes, 1))


def _hidden_rows(role: str, shape: ModelShape, context: ContextSettings, settings: PairSettings) -> list[Line]:
    """States that a draft head reads: of a batch as the target and as the head hand them out, and those kept."""
    n_rows = settings.target.n_ubatch + context.n_ubatch + HEAD_REACH
    formula = f"({settings.target.n_ubatch} + {context.n_ubatch} + {HEAD_REACH}) rows x {shape.n_embd:,} x 4 B"
    return [Line(f"{role} states", n_rows * shape.n_embd * 4, formula)]


def _weights(role: str, shape: ModelShape, context: ContextSettings, sizes: BufferSizes, loading: Loading) -> Line:
    """What is resident: pages of the file stay so beside a rearranged copy, which is why those two add up."""
    n_bytes, how = sizes.weights_bytes, f"{shape.quantisation} {loading}"
    formula = f"{shape.weight_bytes if loading == 'mapped' else n_bytes:,} B, {how}"
    if sizes.devices:  # rows are read into the other devices' memory as they come
        if context.head_stays and loading == "packed":
            n_bytes += _grown(shape, n_bytes)
            n_bytes += shape.tied[1] if shape.tied and shape.tied[0] in PACKED_TYPES else 0
        return Line(f"{role} weights", n_bytes, f"{n_bytes:,} B, {shape.quantisation}, what is left to the processor")
    if not shape.exact:
        formula = f"{shape.n_params:,} weights x {8 * shape.weight_bytes / shape.n_params:.2f} bits, {how}"
    if loading == "packed":
        # Rows are looked up in the original, products use the packed one.
        tied = shape.tied[1] if shape.tied and shape.tied[0] in PACKED_TYPES else 0
        grown = _grown(shape, shape.weight_bytes)
        n_bytes = shape.weight_bytes + tied + grown
        formula += f" + {grown:,} B of scales" + (f" + {tied:,} B of output packed apart" if tied else "")
    elif loading == "mapped":
        n_bytes = shape.weight_bytes + sizes.repacked_bytes
        formula += f" + {sizes.repacked_bytes:,} B rearranged beside them" if sizes.repacked_bytes else ""
    return Line(f"{role} weights", n_bytes, formula)


def _vocabulary(role: str, shape: ModelShape) -> Line:
    n_merges = shape.n_merges + (shape.n_words if shape.n_merges else 0)
    n_tokens = shape.n_vocab + shape.n_words  # a trimmed model reads with a second, whole one
    n_bytes = VOCABULARY_BASE_BYTES + VOCABULARY_TOKEN_BYTES * n_tokens + VOCABULARY_MERGE_BYTES * n_merges
    return Line(
        f"{role} vocabulary",
        n_bytes,
        f"{VOCABULARY_BASE_BYTES:,} B + {n_tokens:,} tokens x {VOCABULARY_TOKEN_BYTES} B "
        f"+ {n_merges:,} merges x {VOCABULARY_MERGE_BYTES} B",
    )


def _compute(role: str, shape: ModelShape, context: ContextSettings, sizes: BufferSizes) -> Line:
    work = buffers.work_bytes(shape, context)
    formula = _formula(shape, buffers.compute_formula(shape, context), sizes)
    grown = buffers.adapter_bytes(shape, context)
    formula += f" + {buffers.adapter_formula(shape, context)}" if grown else ""
    return Line(
        f"{role} compute",
        sizes.compute_bytes + work + grown,
        f"{formula}; scratch {buffers.work_formula(shape, context)}",
    )


def candidates(target: ModelShape, settings: PairSettings, *, spells: bool = True) -> Line:
    """Sampling's view of one row (ids and weights), and what drafting remembers.

    `spells`: a drafter is a model with a vocabulary of its own.
    """
    n_sequences = settings.target.n_sequences
    rows = target.n_vocab * (_ROW_BYTES if n_sequences == 1 else n_sequences * _THREAD_BYTES)
    formula = f"{target.n_vocab:,} x {_ROW_BYTES} B"
    if n_sequences > 1:
        formula = f"{n_sequences} conversations x {target.n_vocab:,} x {_THREAD_BYTES} B"
    table = n_sequences * conversation_bytes(settings.target.n_ctx) if settings.copy else 0
    if table:
        formula += f" + index of {settings.target.n_ctx:,} tokens {table:,} B + earlier answers {STORE_BYTES:,} B"
        table += STORE_BYTES
    if settings.drafter is not None and spells:
        formula += f" + spellings {NGRAM_BYTES:,} B"
        table += NGRAM_BYTES
    return Line("candidates", rows + table, formula)


def _formula(shape: ModelShape, text: str, sizes: BufferSizes) -> str:
    if not shape.known:
        return "sized by llama.cpp"
    return f"{text} (sized by llama.cpp)" if sizes.exact else text
