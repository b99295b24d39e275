"""What is taken where nobody says: models, ways to draft, and what sizes make a drafter worth having."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.memory.errors import USAGE, EdgellmError

if TYPE_CHECKING:
    from edgellm.memory.context import KvType

DEFAULT_TARGET = "qwen2.5-coder-1.5b-instruct"
DEFAULT_DRAFTER = "smollm2-135m-instruct"  # another vocabulary than any target's but its own family's
NO_DRAFTER = "none"
NO_ADAPTER = "none"

MIN_SIZE_RATIO = 2.0
"""A drafter is recommended only where its target is this many times its size, in bytes of the files, or of what a plan
reads for a token: below it, drafting has never paid."""
GOOD_SIZE_RATIO = 5.0
"""A pair is called fitting only from this many times on, in bytes: below it, a draft costs much of what it saves."""
MIN_TOKENS_PER_ROUND = 1.5
"""Below so many tokens a pass of the target, a pair agrees too seldom, however small the drafter is."""


class BadSetting(EdgellmError, ValueError):
    """A setting that cannot be taken as it is given; the message says which one would."""

    exit_code = USAGE


def learned_folder() -> Path:
    """Where what drafting learns is kept between runs."""
    from edgellm.memory.folders import home

    return home() / "learned"


def prefix_folder() -> Path:
    """Where long beginnings of conversations are kept between runs."""
    from edgellm.memory.folders import home

    return home() / "prefixes"


def adapted_folder() -> Path:
    """Where drafters that learnt from their targets are kept."""
    from edgellm.memory.folders import home

    return home() / "adapted"


def drafting_options(
    n: int | None = None, *, learn: bool = True, assume_cost: float | None = None, merged_probs: bool = False
) -> dict[str, Any]:
    """Options of an engine that drafts what pays, or `n` tokens a round, and keeps what it learns."""
    from edgellm.memory.context import N_DRAFT_MOST

    return {
        "n_draft": N_DRAFT_MOST if n is None else n,
        "fixed": n is not None,
        "learn": "kept" if learn else "off",
        "learned": learned_folder(),
        "assume_cost": assume_cost,
        "merged_probs": merged_probs,
        "spelling": "omnidraft" if merged_probs else "merged",
    }


def prefix_options(size: str | None) -> dict[str, Any]:
    """Options of an engine that keeps long beginnings on the disk, up to a size; None for one that does not.

    Raises:
        BadSize: it is no size.
    """
    from edgellm.memory.units import parse_memory

    return {} if size is None else {"prefixes": prefix_folder(), "prefix_bytes": parse_memory(size)}


def asked_bytes(size: str | None) -> int | None:
    """Memory as people write it; answers are then in its units (GB or GiB).

    Raises:
        BadSize: it is no size.
    """
    from edgellm.memory import units

    if size is None:
        return None
    units.answer_in(decimal=units.is_decimal(size))
    return units.parse_memory(size)


def cache_type(word: str | None) -> KvType | None:
    """A type of the KV cache; None leaves it to the plan.

    Raises:
        BadSetting: there is no such type; the message lists them.
    """
    from edgellm.memory.context import KV_BLOCKS

    if word is None:
        return None
    for known in KV_BLOCKS:
        if word.casefold() == known:
            return known
    raise BadSetting(f"{word!r} is no type of the KV cache: take one of {', '.join(KV_BLOCKS)}")
