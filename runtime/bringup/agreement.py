"""How passes of each width agree with single tokens on an accelerator: tried once a model, device, driver and build.

A GPU's products of a few columns and of many are different programs, which round differently: on an NVIDIA H200 through
Vulkan logits move by 0.03 at 2 to 8 tokens and by 0.4 from 9 on, which turns one choice in a dozen near ties.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from edgellm.memory.folders import home
from edgellm.memory.kept_answers import KeptAnswers
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.bringup.exactness import N_PREFIX, N_PROBE, probe_tokens, rows_at_width

QUIET = 0.1  # of a logit: the most that a width may move one, for drafts to be verified in it
KEPT = 64  # answers, of models on the devices that share the folder


@dataclass(frozen=True, slots=True)
class Agreement:
    """By width, from 1 on: the largest change of a logit against single tokens; 0 where no bit differs."""

    changes: tuple[float, ...]

    @property
    def n_exact(self) -> int:
        """The widest of which it and all narrower ones agree bit for bit."""
        return self._up_to(0.0)

    @property
    def n_quiet(self) -> int:
        """Likewise, within what is hardly ever seen in a choice."""
        return self._up_to(QUIET)

    def _up_to(self, most: float) -> int:
        return next((n for n, change in enumerate(self.changes) if not change <= most), len(self.changes))


def agreement(backend: LlamaBackend) -> Agreement:
    """What is known of the backend's widths, or is tried now, which empties it."""
    kept, key = KeptAnswers(home() / "widths.json", KEPT, _is_one), _key(backend)
    changes = kept.get(key)
    if changes is not None and len(changes) <= backend.max_outputs:
        return Agreement(tuple(map(float, changes)))
    found = try_widths(backend)
    kept.put(key, list(found.changes))
    return found


def try_widths(backend: LlamaBackend) -> Agreement:
    """Evaluate the same few tokens at every width. Single tokens are run as the backend runs them. It is left empty."""
    prefix, probe = probe_tokens(backend)
    if not probe:
        return Agreement((0.0,))
    single = rows_at_width(backend, prefix, probe, 1)
    changes = [0.0]
    for width in range(2, backend.max_outputs + 1):
        rows = rows_at_width(backend, prefix, probe, width)
        largest = float(np.abs(rows - single).max())
        changes.append(largest if np.isfinite(largest) else 1e9)
    backend.truncate(0)
    return Agreement(tuple(changes))


def _key(backend: LlamaBackend) -> str:
    model, settings = backend.model, backend.settings
    facts: Sequence[object] = (
        model.path.name, model.n_params, model.header.quantisation, model.placement_key, version("llama-cpp-python"),
        settings.kv, backend.max_outputs, N_PREFIX, N_PROBE, backend.pads_single,
    )  # fmt: skip
    return hashlib.sha256(json.dumps([str(fact) for fact in facts]).encode()).hexdigest()[:32]


def _is_one(kept: Any) -> bool:
    if not isinstance(kept, list) or not kept:
        return False
    return all(isinstance(change, (int, float)) and 0.0 <= change <= 1e9 for change in kept)
