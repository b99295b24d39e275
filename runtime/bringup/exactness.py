"""Which widths of a pass agree in every bit, found by trying.

Engines sum in an order that depends on how many tokens a pass holds, so the same token can get slightly different
logits in a wider pass, and a near tie then falls the other way. Widths that agree can be mixed freely without changing
any output.
"""

from __future__ import annotations

import numpy as np

from edgellm.runtime.backends.base import Backend, Logits

N_PROBE, N_PREFIX = 24, 8  # tokens evaluated at each width, and behind how many


def exact_width(backend: Backend) -> int:
    """The widest w so that passes of 1..w tokens give bitwise equal logits on a few tokens; 1 if none agrees with 1.

    Single tokens are run as the backend runs them: as two, if it pads. The backend is left empty.
    """
    prefix, probe = probe_tokens(backend)
    if not probe:
        return 1
    reference = rows_at_width(backend, prefix, probe, 1)
    width = 1
    for n in range(2, backend.max_outputs + 1):
        if not np.array_equal(rows_at_width(backend, prefix, probe, n), reference):
            break
        width = n
    backend.truncate(0)
    return width


def probe_tokens(backend: Backend) -> tuple[list[int], list[int]]:
    """A text to try widths behind, and the tokens to try; none where the context is too short for any."""
    n_probe = min(N_PROBE, backend.n_ctx - N_PREFIX - 1)  # one that is run as two needs room behind it
    rng = np.random.default_rng(0)
    tokens = [int(token) for token in rng.integers(0, min(backend.n_vocab, 20_000), N_PREFIX + max(n_probe, 0))]
    return tokens[:N_PREFIX], tokens[N_PREFIX:]


def rows_at_width(backend: Backend, prefix: list[int], tokens: list[int], width: int) -> Logits:
    """Logits of `tokens` behind `prefix`, evaluated `width` at a time, shape (len(tokens), n_vocab)."""
    backend.truncate(0)
    backend.forward(prefix, n_outputs=0)
    rows = [
        backend.forward(tokens[i : i + width], n_outputs=len(tokens[i : i + width])).copy()
        for i in range(0, len(tokens), width)
    ]
    return np.concatenate(rows)
