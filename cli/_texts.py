r"""Texts as settings say them, by one rule on the command line, in the environment and in `/set`.

A value is one text, spaces and all: `END OF`. Where it begins with a quote it is several, each quoted: `"END OF" "\n"`.
`\n`, `\t`, `\r` and, for what they are themselves, `\\` and `\"` stand for one character; any other backslash is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from edgellm.memory.errors import USAGE, EdgellmError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
_ESCAPE = re.compile(r"""\\([ntr\\"'])""")
_QUOTED = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')(?=\s|$)""", re.DOTALL)


class BadTexts(EdgellmError, ValueError):
    """Quotes that do not close."""

    exit_code = USAGE


def unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPES[match[1]], text)


def split_texts(value: str) -> list[str]:
    """The texts of a value, still escaped.

    Raises:
        BadTexts: it begins with a quote and is no row of quoted texts.
    """
    value = value.strip(" ")
    if not value.startswith(('"', "'")):
        return [value] if value else []
    found, at = [], 0
    while at < len(value):
        match = _QUOTED.match(value, at)
        if match is None:
            raise BadTexts(f'{value!r} begins with a quote, so it must be texts in quotes, as "END OF" "\\n"')
        found.append(match[1] if match[1] is not None else match[2])
        at = match.end()
    return found


def quoted(texts: Sequence[str]) -> str:
    """A value that means these texts."""
    return " ".join(json.dumps(text, ensure_ascii=False) for text in texts)
