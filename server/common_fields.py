"""Fields that chat and completions share: sampling, ends, and what changes no answer."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgellm.app.serving import Served
from edgellm.memory.sampling_parameters import PARAMETERS, BadSampling
from edgellm.runtime.sampling import MAX_BIAS, Sampling
from edgellm.runtime.text.reasoning import Thinking
from edgellm.server.errors import invalid
from edgellm.server.fields import Fields

MAX_TOKENS = 2**24
MAX_STOPS, MAX_STOP_CHARACTERS = 64, 1_000
MAX_BIASES = 1_000
MAX_CHOICES = 128
_SEEDS = 2**64
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")

# Sent by clients, and nothing of an answer depends on them.
HARMLESS = frozenset(
    {
        "cache_prompt",  # what is cached is always used
        "keep_alive",
        "metadata",
        "prediction",  # drafting does without
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "timings_per_token",
        "user",
    }
)


def read_sampling(fields: Fields, default: Sampling) -> Sampling:
    """What is not given is as the server was started. Raises ApiError."""
    chosen: dict[str, Any] = {}
    for name, row in PARAMETERS.items():
        value = fields.take(name)
        if name == "seed" and isinstance(value, int) and value < -1:
            value %= _SEEDS  # OpenAI's may be negative
        if value is None:
            continue
        try:
            chosen[name] = row.said(value)
        except BadSampling as error:
            raise invalid(str(error), name) from error
    return dataclasses.replace(default, **chosen, logit_bias=_read_bias(fields))


def _read_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    given = fields.object("logit_bias")
    if given is None:
        return ()
    names = given.names()
    if len(names) > MAX_BIASES:
        raise fields.refuse("logit_bias", f"is too much: at most {MAX_BIASES:,} tokens")
    found: dict[int, float] = {}
    for name in names:
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            raise fields.refuse("logit_bias", "must name tokens by their ids")
        if int(name) in found:
            raise fields.refuse("logit_bias", f"names token {int(name)} twice")
        bias = given.number(name, -MAX_BIAS, MAX_BIAS)
        found[int(name)] = bias or 0.0
    return tuple(found.items())


def read_stops(fields: Fields) -> tuple[str, ...]:
    """Texts that end an answer. Empty ones end nothing."""
    return tuple(filter(None, fields.texts("stop", n_most=MAX_STOPS, n_characters=MAX_STOP_CHARACTERS)))


def read_include_usage(fields: Fields, *, is_stream: bool) -> bool:
    """Whether a stream ends with what it cost."""
    options = fields.object("stream_options")
    if options is None:
        return False
    if not is_stream:
        raise fields.refuse("stream_options", "goes with stream: true")
    include = options.flag("include_usage")
    options.end({"include_obfuscation"})
    return bool(include)


def read_effort(fields: Fields, name: str) -> str | None:
    """How much a model is to think; none of it, or as much as it does. Raises ApiError."""
    effort = fields.text(name)
    if effort is not None and effort not in _EFFORTS:
        raise fields.refuse(name, f"must be one of {', '.join(_EFFORTS)}")
    return effort


def check_think(fields: Fields, served: Served, think: bool | None, name: str) -> None:
    """Raises ApiError: a thought is asked for, and the model has none."""
    if think:
        about = Thinking(served.template, served.vocabulary, think).about()
        if about is not None and "not known to think" in about:
            raise fields.refuse(name, "changes nothing: this model is not known to think; leave it out")


def with_seeds(sampling: Sampling, n: int) -> list[Sampling]:
    """The sampling of each choice: another draw each, and with a seed the same ones again."""
    if sampling.seed is None:
        return [sampling] * n
    return [dataclasses.replace(sampling, seed=(sampling.seed + i) % _SEEDS) for i in range(n)]
