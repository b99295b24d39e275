"""Sizes as people write them. `GB` is 10^9 bytes and `GiB` is 2^30, always; answers keep to what was asked in."""

from __future__ import annotations

import re
from contextvars import ContextVar

from edgellm.memory.errors import USAGE, EdgellmError

KIB, MIB, GIB = 2**10, 2**20, 2**30
MOST_BYTES = 2**60  # no memory is larger; more is a slip of the keyboard

_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "kib": 2**10,
    "m": 10**6, "mb": 10**6, "mib": 2**20,
    "g": 10**9, "gb": 10**9, "gib": 2**30,
    "t": 10**12, "tb": 10**12, "tib": 2**40,
}  # fmt: skip

_decimal = ContextVar("decimal", default=False)  # of `format_bytes`: units of 1000


class BadSize(EdgellmError, ValueError):
    """Text that is no size."""

    exit_code = USAGE


def parse_bytes(text: str) -> int:
    """`"6GB"` -> 6_000_000_000, `"6GiB"` -> 6_442_450_944, `"512"` -> 512.

    Raises:
        BadSize: not a number with one of the known units, or more than any memory.
    """
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match.group(2).lower()) if match else None
    if match is None or unit is None:
        raise BadSize(f"{_quoted(text)} is not a size: write it like 6GB (10^9 bytes), 6GiB (2^30) or 512MiB")
    value = float(match.group(1)) * unit
    if value > MOST_BYTES:
        raise BadSize(f"{_quoted(text)} is more than any memory: write it like 6GB (10^9 bytes) or 6GiB (2^30)")
    return int(value)


def parse_memory(text: str) -> int:
    """`parse_bytes` for the memory of a device or a program: a number without a unit is hardly meant in bytes.

    Raises:
        BadSize: as `parse_bytes`, and less than a kibibyte; the message offers what was meant.
    """
    n_bytes = parse_bytes(text)
    if n_bytes < KIB:
        meant = f"did you mean {text.strip()}GB?" if n_bytes and text.strip()[-1].isdigit() else "write it like 6GB"
        raise BadSize(f"{_quoted(text)} is {n_bytes} bytes: {meant}")
    return n_bytes


def is_decimal(text: str) -> bool:
    """Whether a size was written in units of 1000 (GB) rather than 1024 (GiB)."""
    match = _SIZE.fullmatch(text)
    return match is not None and match.group(2).lower() in ("k", "kb", "m", "mb", "g", "gb", "t", "tb")


def answer_in(*, decimal: bool) -> None:
    """From here on `format_bytes` writes units of 1000 (GB), or of 1024 (GiB), as sizes were asked for."""
    _decimal.set(decimal)


def answers_in_decimal() -> bool:
    """What `answer_in` said last; False where it said nothing."""
    return _decimal.get()


def format_bytes(n_bytes: int, *, decimal: bool | None = None) -> str:
    """Bytes for people: `1.04 GiB`, `93.8 MiB`, `12 B`; `1.12 GB`, `98.4 MB` where sizes were asked for so."""
    decimal = _decimal.get() if decimal is None else decimal
    base, names = (1000, ("kB", "MB", "GB")) if decimal else (1024, ("KiB", "MiB", "GiB"))
    value, sign = float(abs(n_bytes)), "-" if n_bytes < 0 else ""
    if value < base:
        return f"{n_bytes} B"
    if value < base**2:
        return f"{sign}{value / base:.1f} {names[0]}"
    if value < base**3:
        return f"{sign}{value / base**2:.1f} {names[1]}"
    return f"{sign}{value / base**3:.2f} {names[2]}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
