"""Signs that vocabularies write for bytes and spaces."""

from __future__ import annotations

SPACE = "\u2581"  # SentencePiece's visible space


def byte_alphabet() -> list[str]:
    """The sign that stands for each byte in a byte-level BPE vocabulary (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def looks_special(text: str) -> bool:
    """Control tokens that some tokenizers mark as ordinary text (Gemma, DeepSeek): a user must not be able to write
    them.
    """
    return (
        text in {"<pad>", "<mask>", "[multimodal]"}
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )
