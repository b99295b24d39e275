"""A plan: what a target and its drafter will take, line by line, and whether that fits.

Each line carries its formula with the numbers put in. The runtime allocates what the plan says, so a plan also holds
every setting that decides a size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgellm.memory import buffers, kv
from edgellm.memory.buffer_sizes import BufferSizes, Sizer
from edgellm.memory.buffers import estimate
from edgellm.memory.context import ContextSettings
from edgellm.memory.drafting_budgets import NGRAM_BYTES, STORE_BYTES, conversation_bytes
from edgellm.memory.errors import DOES_NOT_FIT, EdgellmError
from edgellm.memory.shape import ModelShape
from edgellm.memory.units import MIB, format_bytes

Loading = Literal["mapped", "copied", "packed"]
"""mapped: the file's own pages; copied: read into memory; packed: rearranged by our kernels, originals let go."""

VERSION = 1

# Measured on Linux x86-64, CPython 3.11, numpy 2.4, llama-cpp-python 0.3.36 (docs/memory.md says how).
RUNTIME_BASE_BYTES = 50 * MIB  # interpreter, numpy, the engine's libraries
VOCABULARY_BASE_BYTES = 3_600_000
VOCABULARY_TOKEN_BYTES = 166  # the engine's and our own tables, a token
VOCABULARY_MERGE_BYTES = 141
# Our kernels' layout against the file's; other types keep their size.
PACKED_GROWTH = {"Q4_K": 4 / 144, "Q5_K": 4 / 176, "IQ4_XS": 2 / 136}
PACKED_TYPES = {  # that our kernels take
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "IQ4_XS",
    "IQ3_S", "IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "TQ1_0", "TQ2_0", "Q1_0", "F16", "BF16",
}  # fmt: skip
ERROR_SHARE = 0.026  # the worst that a prediction was off (docs/memory.md); a plan fits only with this to spare
SLACK_BYTES = 5 * MIB  # a context's graph descriptions, and the heap's holes


class PlanError(EdgellmError, ValueError):
    """A stored plan that cannot be read."""


class DoesNotFit(EdgellmError, RuntimeError):
    """The plan is larger than the budget; the message names the nearest plan that would fit."""

    exit_code = DOES_NOT_FIT


@dataclass(frozen=True, slots=True)
class Limit:
    """How much there is."""

    name: str
    total_bytes: int
    reserve_bytes: int = 0  # of the total: what the system and other programs keep


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


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second while decoding. `plain` is the same target without drafting."""

    value: float
    kind: Literal["measured", "estimated"]
    plain: float


@dataclass(frozen=True, slots=True)
class Trim:
    """One step of the ladder that led here."""

    name: str
    saved_bytes: int
    cost: str
    tells: bool = False  # answers may be others, shorter or slower for it: a summary must not keep it to itself


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    target: str
    drafter: str | None
    quantisation: str
    lines: tuple[Line, ...]
    limit: Limit
    settings: PairSettings
    exact: bool  # buffers came from the engine itself
    tokens_per_s: Speed | None = None
    steps: tuple[Trim, ...] = ()
    bound_bytes: int | None = None  # the least budget with which a draft model still gains
    needed_bytes: int | None = None  # the least budget that holds this target at all, whatever the device
    lost: tuple[str, ...] = ()  # what was asked for and is not kept, a sentence each
    target_reference: str | None = None  # what finds the files again: a path, or a name and its type
    drafter_reference: str | None = None
    target_obtain: str | None = None  # how to make it, where nobody offers it at this type
    drafter_obtain: str | None = None
    loras: tuple[str, ...] = ()  # adapters of the target, as `--lora` names them
    draft_adapter: str | None = None  # of the drafter, as `--draft-adapter` names it; None: the one that is in use then

    @property
    def limit_bytes(self) -> int:
        return self.limit.total_bytes

    @property
    def total_bytes(self) -> int:
        return sum(line.n_bytes for line in self.lines)

    @property
    def required_bytes(self) -> int:
        """A budget that this program keeps to, the margin included."""
        return self.total_bytes - self.limit.reserve_bytes

    @property
    def process_bytes(self) -> int:
        """What this program itself is expected to hold at its peak."""
        return self.required_bytes - self.margin_bytes

    @property
    def margin_bytes(self) -> int:
        """What predictions were off by at worst."""
        return sum(line.n_bytes for line in self.lines if line.name == "margin")

    @property
    def changes(self) -> tuple[str, ...]:
        """The trims that tell."""
        return tuple(step.name for step in self.steps if step.tells)

    @property
    def headroom_bytes(self) -> int:
        return self.limit_bytes - self.total_bytes

    @property
    def fits(self) -> bool:
        return self.headroom_bytes >= 0

    @property
    def generation_bytes(self) -> int:
        """Everything that generating needs beyond the weights: caches, temporaries, logits, candidates."""
        return sum(line.n_bytes for line in self.lines if line.name in GENERATION_LINES)

    @property
    def n_ctx(self) -> int:
        return self.settings.target.n_ctx

    @property
    def n_draft(self) -> int:
        return self.settings.n_draft

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values; `stored.plan_from_json` reads it back."""
        settings = self.settings
        return {
            "lost": list(self.lost),
            "changes": list(self.changes),
            "version": VERSION,
            "target": self.target,
            "target_reference": self.target_reference,
            "drafter_reference": self.drafter_reference,
            "target_obtain": self.target_obtain,
            "loras": list(self.loras),
            "draft_adapter": self.draft_adapter,
            "drafter_obtain": self.drafter_obtain,
            "drafter": self.drafter,
            "quantisation": self.quantisation,
            "fits": self.fits,
            "limit_bytes": self.limit_bytes,
            "reserve_bytes": self.limit.reserve_bytes,
            "limit_name": self.limit.name,
            "total_bytes": self.total_bytes,
            "process_bytes": self.process_bytes,
            "margin_bytes": self.margin_bytes,
            "required_bytes": self.required_bytes,
            "needed_bytes": self.needed_bytes,
            "generation_bytes": self.generation_bytes,
            "headroom_bytes": self.headroom_bytes,
            "bound_bytes": self.bound_bytes,
            "lines": [asdict(line) for line in self.lines],
            "n_ctx": settings.target.n_ctx,
            "n_draft": settings.n_draft,
            "kv": settings.target.kv,
            "n_ubatch": settings.target.n_ubatch,
            "n_outputs": settings.target.n_outputs,
            "n_threads": settings.target.n_threads,
            "n_sequences": settings.target.n_sequences,
            "n_rs_seq": settings.target.n_rs_seq,
            "n_saved_states": settings.target.n_saved_states,
            "drafter_settings": asdict(settings.drafter) if settings.drafter else None,
            "copy": settings.copy,
            "loading": settings.loading,
            "repack": settings.repack,
            "exact": self.exact,
            "tokens_per_s": asdict(self.tokens_per_s) if self.tokens_per_s else None,
            "steps": [asdict(step) for step in self.steps],
        }


_ROW_BYTES = 12  # a token's, in sampling's view of a row: id and weight
_THREAD_BYTES = 32  # likewise, in a thread that keeps what it worked with; measured on three vocabularies

_PARTS = ("cache", "states", "compute", "logits")
GENERATION_LINES = {"candidates", *(f"{role} {part}" for role in ("target", "drafter") for part in _PARTS)}


def plan(
    target: ModelShape,
    drafter: ModelShape | None,
    settings: PairSettings,
    limit: Limit,
    *,
    sizer: Sizer = estimate,
) -> MemoryPlan:
    """Every line of a pair under these settings.

    Raises:
        UnsupportedCache: a cache type that a model's heads do not divide into.
    """
    lines: list[Line] = []
    sizes = [sizer(target, settings.target, settings.repack)]
    lines += _model_lines("target", target, settings.target, sizes[0], settings)
    if drafter is not None and settings.drafter is not None:
        sizes.append(sizer(drafter, settings.drafter, settings.repack))
        lines += _model_lines("drafter", drafter, settings.drafter, sizes[1], settings)
    lines.append(_candidates(target, settings))
    lines.append(Line("runtime", RUNTIME_BASE_BYTES, "interpreter, numpy and the engine's libraries, measured"))
    graphs = target.onnx is not None or (
        drafter is not None and drafter.onnx is not None and settings.drafter is not None
    )
    error = ERROR_SHARE
    if graphs:
        from edgellm.memory import onnx_plan  # reading graphs is a tenth of a short command's time

        error = onnx_plan.ERROR_SHARE
        lines.append(Line("runtime onnxruntime", onnx_plan.LIBRARY_BYTES, "its library, measured"))
    lines.append(Line("unaccounted", len(sizes) * SLACK_BYTES, f"{format_bytes(SLACK_BYTES)} a context"))
    process_bytes = sum(line.n_bytes for line in lines)
    margin = math.ceil(process_bytes * error)
    lines.append(Line("margin", margin, f"{error:.1%}, the worst that predictions were off"))
    if limit.reserve_bytes:
        lines.append(
            Line("system reserve", limit.reserve_bytes, f"kept for the system and other programs: {limit.name}")
        )
    kept_drafter = drafter.name if drafter is not None and settings.drafter is not None else None
    exact = all(size.exact for size in sizes)
    return MemoryPlan(target.name, kept_drafter, target.quantisation, tuple(lines), limit, settings, exact)


def _model_lines(
    role: str, shape: ModelShape, context: ContextSettings, sizes: BufferSizes, settings: PairSettings
) -> list[Line]:
    if shape.onnx is not None:
        from edgellm.memory import onnx_plan

        return [Line(*line) for line in onnx_plan.lines(role, shape, context, sizes)]
    return [
        _weights(role, shape, sizes, settings.loading),
        *([Line("adapters", shape.adapter_bytes, "as they lie in their files")] if shape.adapter_bytes else ()),
        _vocabulary(role, shape),
        Line(f"{role} cache", sizes.kv_bytes, _formula(shape, kv.cache_formula(shape, context), sizes)),
        *_saved_states(role, context, sizes),
        _compute(role, shape, context, sizes),
        Line(f"{role} logits", sizes.output_bytes, buffers.output_formula(shape, context)),
    ]


def _saved_states(role: str, context: ContextSettings, sizes: BufferSizes) -> list[Line]:
    """Copies of a recurrent state that a text is cut back to, beside what the engine keeps."""
    n, size = context.n_saved_states, sizes.state_bytes
    return [Line(f"{role} states", n * size, f"{n} copies x {size:,} B")] if n * size else []


def _weights(role: str, shape: ModelShape, sizes: BufferSizes, loading: Loading) -> Line:
    """What is resident: pages of the file stay so beside a rearranged copy, which is why those two add up."""
    n_bytes, how = sizes.weights_bytes, f"{shape.quantisation} {loading}"
    formula = f"{n_bytes:,} B, {how}"
    if not shape.exact:
        formula = f"{shape.n_params:,} weights x {8 * shape.weight_bytes / shape.n_params:.2f} bits, {how}"
    if loading == "packed":
        # Rows are looked up in the original, products use the packed one.
        doubled = [shape.tied] if shape.tied and shape.tied[0] in PACKED_TYPES else []
        tied, matrices = sum(size for _, size in doubled), [*shape.matrix_bytes, *doubled]
        grown = int(sum(size * PACKED_GROWTH.get(kind, 0.0) for kind, size in matrices))
        n_bytes = shape.weight_bytes + tied + grown
        formula += f" + {grown:,} B of scales" + (f" + {tied:,} B of output packed apart" if tied else "")
    elif loading == "mapped" and sizes.repacked_bytes:
        n_bytes = shape.weight_bytes + sizes.repacked_bytes
        formula += f" + {sizes.repacked_bytes:,} B rearranged beside them"
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


def _candidates(target: ModelShape, settings: PairSettings) -> Line:
    """Sampling's view of one row (ids and weights), and what drafting remembers."""
    n_sequences = settings.target.n_sequences
    rows = target.n_vocab * (_ROW_BYTES if n_sequences == 1 else n_sequences * _THREAD_BYTES)
    formula = f"{target.n_vocab:,} x {_ROW_BYTES} B"
    if n_sequences > 1:
        formula = f"{n_sequences} conversations x {target.n_vocab:,} x {_THREAD_BYTES} B"
    table = n_sequences * conversation_bytes(settings.target.n_ctx) if settings.copy else 0
    if table:
        formula += f" + index of {settings.target.n_ctx:,} tokens {table:,} B + earlier answers {STORE_BYTES:,} B"
        table += STORE_BYTES
    if settings.drafter is not None:
        formula += f" + spellings {NGRAM_BYTES:,} B"
        table += NGRAM_BYTES
    return Line("candidates", rows + table, formula)


def _formula(shape: ModelShape, text: str, sizes: BufferSizes) -> str:
    if not shape.known:
        return "sized by llama.cpp"
    return f"{text} (sized by llama.cpp)" if sizes.exact else text
