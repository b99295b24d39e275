"""Numbers that a header or a config.json states, checked in one place: a whole number within what a model can have.

The files come from outside. Nothing behind this module meets a text, a NaN, a negative count or an absurd one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.memory.errors import EdgellmError
from edgellm.memory.gguf import GgufArray, GgufHeader, shown

MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
MAX_HEADS = 2**14
MAX_WIDTH = 2**22  # elements a token
MAX_TOKENS = 2**31 - 1  # of a context or a window: llama.cpp counts them in 32 bits
MAX_VOCABULARY = 2**24


class UnknownShape(EdgellmError, ValueError):
    """A model whose memory cannot be told from what is known; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Hparams:
    """The stated numbers of one model. A missing entry is None; one that is no such number is refused."""

    where: str  # the file, for messages
    raw: Callable[[str], Any]
    remedy: str
    floats: bool = False  # 512.0 is a count, as JSON has it

    def count(self, key: str, default: int | None = None, *, least: int = 0, most: int = MAX_WIDTH) -> int:
        """A whole number between `least` and `most`.

        Raises:
            UnknownShape: it is missing and has no default, or is something else.
        """
        value = self.raw(key)
        if value is None:
            if default is None:
                raise UnknownShape(f"{self.where} does not say its {key}: {self.remedy}")
            return default
        return self._checked(key, value, least, most)

    def counts(self, key: str, n_layers: int, default: list[int], *, most: int) -> list[int]:
        """One number a layer, of an entry that is a number or an array of at least so many.

        Raises:
            UnknownShape: it is neither.
        """
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, list | GgufArray):
            return [self._checked(key, value, 0, most)] * n_layers
        items = self.listed(key)
        if len(items) < n_layers:
            raise UnknownShape(f"{self.where} has {len(items)} {key} for {n_layers} layers: {self.remedy}")
        return [self._checked(key, item, 0, most) for item in items[:n_layers]]

    def listed(self, key: str) -> list[Any]:
        """The items of an array, `[]` where the entry is missing or no array.

        Raises:
            UnknownShape: it has more items than a model has layers.
        """
        value = self.raw(key)
        items = value.items() if isinstance(value, GgufArray) and value.n_items <= MAX_LAYERS else value
        if isinstance(items, GgufArray) or (isinstance(items, list) and len(items) > MAX_LAYERS):
            raise UnknownShape(f"{self.where} has more {key} than {MAX_LAYERS} layers can: {self.remedy}")
        return items if isinstance(items, list) else []

    def _checked(self, key: str, value: Any, least: int, most: int) -> int:
        if self.floats and isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UnknownShape(
                f"{self.where} has {key} {shown(value)}, which is no whole number from {least:,} to {most:,}: "
                f"{self.remedy}"
            )
        return value


def of_header(header: GgufHeader) -> Hparams:
    """The architecture's own entries: `count("block_count")` reads `qwen2.block_count`."""
    return Hparams(str(header.path), header.hparam, "the header is damaged, pull or export it again")


def of_config(config: Mapping[str, Any], name: str) -> Hparams:
    """A checkpoint's config.json."""
    return Hparams(f"config.json of {name}", config.get, "is it a language model's?", floats=True)
