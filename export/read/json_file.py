"""JSON objects from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgellm.export.read.tokenizer_facts import TokenizerError
from edgellm.memory.limits import TOKENIZER_JSON_MAX_BYTES

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from outside.

    Raises:
        TokenizerError: not an object, damaged, or absurdly large.
    """
    if path.stat().st_size > TOKENIZER_JSON_MAX_BYTES:
        raise TokenizerError(f"{path} has {path.stat().st_size:,} bytes, which no configuration needs: is it damaged?")
    data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise TokenizerError(f"{path} is a pointer of Git LFS and not the file: run `git lfs pull` in its folder")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is no valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds no JSON object: download it again")
    return value
