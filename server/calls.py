"""What a client wants of answers, once its request was read."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm.app.serving import Served
from edgellm.runtime.request import Request


@dataclass(frozen=True, slots=True)
class Call:
    """Requests to one model, an answer each, and how they are told."""

    served: Served
    model: str  # the name that the client gave it
    requests: tuple[Request, ...]  # one a choice
    n_prompts: int = 1  # the first so many choices, and so on, are of one prompt each
    is_stream: bool = False
    include_usage: bool = False
    echoes: tuple[str, ...] = ()  # of completions: what each choice begins with
    settings: Mapping[str, Any] = field(default_factory=dict)  # of responses: fields that the answer repeats
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def n_choices_each(self) -> int:
        """Choices of one prompt; they follow each other."""
        return len(self.requests) // self.n_prompts
