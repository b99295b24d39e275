"""Sizes as people write them. `GB` is 10^9 bytes and `GiB` is 2^30, always."""

from __future__ import annotations

import re

KIB, MIB, GIB = 2**10, 2**20, 2**30

_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "kib": 2**10,
    "m": 10**6, "mb": 10**6, "mib": 2**20,
    "g": 10**9, "gb": 10**9, "gib": 2**30,
    "t": 10**12, "tb": 10**12, "tib": 2**40,
}  # fmt: skip


class BadSize(ValueError):
    """Text that is no size."""


def parse_bytes(text: str) -> int:
    """`"6GB"` -> 6_000_000_000, `"6GiB"` -> 6_442_450_944, `"512"` -> 512.

    Raises:
        BadSize: not a number with one of the known units.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match.group(2).lower()) if match else None
    if match is None or unit is None:
        raise BadSize(f"{text!r} is not a size: write it like 6GB (10^9 bytes), 6GiB (2^30) or 512MiB")
    return int(float(match.group(1)) * unit)


def format_bytes(n_bytes: int) -> str:
    """Bytes for people, in binary units: `1.04 GiB`, `93.8 MiB`, `12 B`."""
    value = float(abs(n_bytes))
    sign = "-" if n_bytes < 0 else ""
    if value < KIB:
        return f"{n_bytes} B"
    if value < MIB:
        return f"{sign}{value / KIB:.1f} KiB"
    if value < GIB:
        return f"{sign}{value / MIB:.1f} MiB"
    return f"{sign}{value / GIB:.2f} GiB"
