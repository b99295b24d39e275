"""Adapters as people name them: FILE[:SCALE], or the folder of an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.memory.adapter import Lora


def loras(given: Sequence[str]) -> tuple[Lora, ...]:
    """The adapters of `FILE[:SCALE]` texts.

    Raises:
        AdapterError: there is no such file, or a folder holds no adapter or several.
    """
    return tuple(map(_lora, given))


def adapters_json(given: Sequence[Lora]) -> list[dict[str, Any]]:
    """Adapters as a report names them."""
    return [{"path": str(lora.path), "scale": lora.scale} for lora in given]


def _lora(text: str) -> Lora:
    from edgellm.memory.adapter import Lora

    path, scale = Path(text).expanduser(), 1.0
    head, colon, tail = text.rpartition(":")
    if colon and head and not path.exists() and (number := _number(tail)) is not None:
        path, scale = Path(head).expanduser(), number
    return Lora(_file(path), scale)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _file(path: Path) -> Path:
    """The adapter itself, where an export's folder is named."""
    from edgellm.memory.adapter import AdapterError

    if path.is_file():
        return path
    if not path.exists():
        raise AdapterError(f"there is no adapter {path}")
    if (path / "adapter_config.json").is_file():
        raise AdapterError(f"{path} is an adapter as PEFT has it: `edgellm export {path}` makes a GGUF file of it")
    found = sorted(path.glob("*-lora-*.gguf")) or sorted(path.glob("*.gguf"))
    if len(found) != 1:
        what = "several adapters" if found else "no adapter"
        raise AdapterError(f"{path} holds {what}: name the GGUF file of one")
    return found[0]
