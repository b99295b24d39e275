"""POST /embeddings."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.app.serving import Served
from edgellm.server.fields import Fields
from edgellm.server.texts import check_ids, encode_prompt, read_texts
from edgellm.server.writing import Work

MAX_INPUTS = 2_048
_MOST_DIMENSIONS = 2**20
_HARMLESS = ("user", "metadata")


def read_embeddings(fields: Fields, served: Served, cancel: threading.Event, *, count: Callable[[int], None]) -> Work:
    """
    Args:
        count: told of the tokens that were read.

    Raises:
        ApiError: a field is of another form.
    """
    texts = [_tokens(fields, served, given) for given in read_texts(fields, "input", MAX_INPUTS)]
    encoding = fields.text("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise fields.refuse("encoding_format", "must be float or base64")
    n_dimensions = fields.whole("dimensions", 1, _MOST_DIMENSIONS)
    fields.end(_HARMLESS)

    def work() -> dict[str, Any]:
        rows = served.embed(texts, cancel)
        if n_dimensions is not None:
            rows = _shortened(fields, rows, n_dimensions)
        n_tokens = sum(map(len, texts))
        count(n_tokens)
        return {
            "object": "list",
            "model": served.name,
            "data": [_told(i, row, is_base64=encoding == "base64") for i, row in enumerate(rows)],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    return work


def _tokens(fields: Fields, served: Served, given: str | list[int]) -> list[int]:
    if not isinstance(given, str):
        return check_ids(fields, "input", served.vocabulary, given)
    tokens = encode_prompt(served, given, begins=True) if given else []
    if not tokens:
        raise fields.refuse("input", "holds an empty text: there is nothing to embed")
    return tokens


def _shortened(fields: Fields, rows: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """The first numbers of each vector, of unit length again."""
    if n > rows.shape[1]:
        raise fields.refuse("dimensions", f"is out of range: this model's embeddings have {rows.shape[1]:,}")
    cut = rows[:, :n].astype(np.float64)
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    return (cut / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _told(index: int, row: NDArray[np.float32], *, is_base64: bool) -> dict[str, Any]:
    data = base64.b64encode(row.astype("<f4").tobytes()).decode() if is_base64 else row.tolist()
    return {"object": "embedding", "index": index, "embedding": data}
