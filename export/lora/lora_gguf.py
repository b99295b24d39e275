"""A LoRA as a GGUF adapter, which llama.cpp applies beside its base's weights.

What is done to a weight on its way to GGUF is done to an adapter too: rows of Llama's queries and keys change places,
which are B's rows. An embedding's A is kept a row a token.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edgellm.export.convert import dtypes
from edgellm.export.convert import gguf_writer as writer
from edgellm.export.convert.gguf_writer import PlannedTensor
from edgellm.export.convert.tensors import order
from edgellm.export.lora.adapters import EMBEDDING, HEAD, Adapter, Base, Floats, Pair, read_floats
from edgellm.export.lora.lora_facts import LoraFacts
from edgellm.export.read.checkpoint import StoredTensor
from edgellm.export.read.facts import UnsupportedModel

TYPES = ("F16", "F32", "BF16")
_MERGE = "--merge makes one model of both"
_SMALLEST, _LARGEST = 2.0**-8, 2.0**12  # of a matrix's largest number: F16 rounds smaller ones more coarsely


def check_facts_allow_it(facts: LoraFacts, base: Base) -> None:
    """Whether llama.cpp could apply it beside its base's weights, as far as configurations tell.

    Raises:
        UnsupportedModel: it changes what a GGUF adapter has no place for; the message says what to do.
    """
    if facts.dora:
        raise UnsupportedModel(f"{facts.folder} is a DoRA, whose lengths depend on its base's weights: {_MERGE}")
    if facts.whole:
        raise UnsupportedModel(
            f"{facts.folder} holds {', '.join(facts.whole)} whole (modules_to_save), for which a GGUF adapter has no "
            f"place: {_MERGE}"
        )
    for name, module in ((EMBEDDING, "model.embed_tokens"), (HEAD, "lm_head")):
        if base.tied and facts.takes(module):
            raise UnsupportedModel(_shared(facts, base, name))


def check_can_be_applied(adapter: Adapter, base: Base) -> None:
    """Likewise, as its tensors tell. Raises as `check_facts_allow_it`."""
    facts = adapter.facts
    check_facts_allow_it(facts, base)
    if adapter.whole:
        name = next(iter(adapter.whole.values())).name
        raise UnsupportedModel(f"{facts.folder} holds {name} whole, for which a GGUF adapter has no place: {_MERGE}")
    for name in (EMBEDDING, HEAD):
        if base.tied and name in adapter.pairs:
            raise UnsupportedModel(_shared(facts, base, name))


def _shared(facts: LoraFacts, base: Base, name: str) -> str:
    which = "embedding" if name == EMBEDDING else "head (lm_head)"
    return (
        f"{facts.folder} adapts the {which}, and one matrix is both embedding and head in {base.name}, where llama.cpp "
        f"cannot tell them apart: {_MERGE}"
    )


def write_adapter(adapter: Adapter, base: Base, path: Path, type_name: str, entries: Mapping[str, bytes]) -> None:
    """A GGUF adapter, whole or not at all.

    Args:
        type_name: one of TYPES.
        entries: metadata beside what llama.cpp asks for: names and where it is from.
    """
    facts = adapter.facts
    head = {
        "general.architecture": writer.string(base.arch),
        "general.type": writer.string("adapter"),
        "adapter.type": writer.string("lora"),
        "adapter.lora.alpha": writer.f32(facts.alpha),
        "general.file_type": writer.u32(dtypes.FILE_TYPES[type_name]),
    }
    tensors: list[PlannedTensor] = []
    for name in sorted(adapter.pairs, key=order):
        tensors += _planned(name, adapter.pairs[name], base, facts.alpha, type_name)
    writer.write_gguf(path, head | dict(entries), tensors)


def _planned(name: str, pair: Pair, base: Base, alpha: float, type_name: str) -> list[PlannedTensor]:
    def halves() -> tuple[Floats, Floats]:
        a, b = read_floats(pair.a), read_floats(pair.b)
        # llama.cpp multiplies by alpha / rank, and by nothing where alpha is 0: what else scales goes into B.
        b = b * np.float32(pair.scale / (alpha / pair.rank)) if alpha else b * np.float32(0)
        permute = re.search(r"attn_([qk])\.", name) if base.family.permute else None
        if permute:
            n_heads = base.n_heads if permute[1] == "q" else base.n_kv_heads
            b = dtypes.paired(b.reshape(-1), n_heads, len(b)).reshape(b.shape)
        a, b = _balanced(a, b) if type_name == "F16" else (a, b)
        return (np.ascontiguousarray(a.T) if name == EMBEDDING else a), b

    def planned(ending: str, stored: StoredTensor, which: int, shape: tuple[int, ...]) -> PlannedTensor:
        def chunks() -> Iterator[bytes]:
            yield dtypes.as_type(halves()[which].reshape(-1), stored, type_name)

        return PlannedTensor(f"{name}.{ending}", shape, type_name, chunks)

    shape_of_a = pair.a.shape if name == EMBEDDING else tuple(reversed(pair.a.shape))
    return [
        planned("lora_a", pair.a, 0, shape_of_a),
        planned("lora_b", pair.b, 1, tuple(reversed(pair.b.shape))),
    ]


def _balanced(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Both with room in F16: a power of two goes from one to the other where one of them is very small or large."""
    largest = [float(np.abs(half).max(initial=0)) for half in (a, b)]
    if min(largest) == 0 or all(_SMALLEST <= most <= _LARGEST for most in largest) or not np.isfinite(largest).all():
        return a, b
    shift = round(math.log2(largest[0] / largest[1]) / 2)
    return np.ldexp(a, -shift), np.ldexp(b, shift)
