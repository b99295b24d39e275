"""JSON from outside: one object, each key once, numbers that are numbers, text that is text."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from edgellm.server.errors import ApiError, invalid

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that is half a surrogate pair, or one of two


def read_object(data: bytes) -> dict[str, Any]:
    """
    Raises:
        ApiError: it is no JSON object, or one that readers understand differently.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"the body is no UTF-8 text: byte {error.start} is wrong") from error
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        if _HALF.search(data):
            _check_text(value)
    except RecursionError as error:
        raise invalid("the body is nested too deeply") from error
    except ApiError:
        raise
    except ValueError as error:  # too many digits are one too
        raise invalid(f"the body is no JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise invalid("the body is no JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise invalid(f"the body names {twice[:64]!a} twice in one object")
    return made


def _constant(word: str) -> NoReturn:
    raise invalid(f"the body is no JSON: {word} is no number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise invalid(f"the body holds a number that is too large: {digits[:32]}")
    return value


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise invalid("the body holds half a surrogate pair, which is no text") from error
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_text(name)
            _check_text(item)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
