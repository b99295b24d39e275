"""A JSON object taken apart field by field: what is of another type, out of range or unknown is refused by name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from edgellm.server.errors import ApiError, invalid


class Fields:
    """The fields that were not taken yet. null is the same as left out."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        """`where`: what stands before the names in sentences, as "stream_options."."""
        self._values = {name: value for name, value in values.items() if value is not None}
        self._where = where

    def take(self, name: str) -> Any:
        """As it is; None where it is not given."""
        return self._values.pop(name, None)

    def peek(self, name: str) -> Any:
        """The same, and it is still to be taken."""
        return self._values.get(name)

    def refuse(self, name: str, sentence: str) -> ApiError:
        return invalid(f"{self._where}{name} {sentence}", self._where + name)

    def text(self, name: str) -> str | None:
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self.refuse(name, f"must be a text, not {_kind(value)}")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(name, f"must be true or false, not {_kind(value)}")
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(name, f"must be a whole number, not {_kind(value)}")
        if not low <= value <= high:
            raise self.refuse(name, f"is out of range: {low:,} to {high:,}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refuse(name, f"must be a number, not {_kind(value)}")
        if not low <= value <= high:
            raise self.refuse(name, f"is out of range: {low:g} to {high:g}")
        return float(value)

    def object(self, name: str) -> Fields | None:
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(name, f"must be an object, not {_kind(value)}")
        return Fields(value, f"{self._where}{name}.")

    def texts(self, name: str, *, n_most: int, n_characters: int) -> tuple[str, ...]:
        """A text or a list of texts."""
        value = self.take(name)
        given = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise self.refuse(name, "must be a text or a list of texts")
        if len(given) > n_most or any(len(text) > n_characters for text in given):
            raise self.refuse(name, f"is too much: at most {n_most} texts of {n_characters:,} characters each")
        return tuple(given)

    def end(self, harmless: Collection[str] = ()) -> None:
        """Refuse what nobody took, but for what changes no answer."""
        for name in self._values:
            if name not in harmless:
                raise self.refuse(name[:64], "is not known here: leave it out")

    def names(self) -> list[str]:
        """Those that nobody took."""
        return list(self._values)


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", str: "a text", list: "a list", dict: "an object", int: "a number"}
    return kinds.get(type(value), "a number")
