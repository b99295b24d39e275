"""The body of POST /completions: prompts that are gone on from as they are, without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm.app.serving import Served
from edgellm.runtime.logprobs import MAX_TOP
from edgellm.runtime.request import Request
from edgellm.runtime.sampling import Sampling
from edgellm.runtime.text.fill_in import find_fill_in
from edgellm.server.calls import Call
from edgellm.server.common_fields import (
    HARMLESS,
    MAX_CHOICES,
    MAX_TOKENS,
    read_include_usage,
    read_sampling,
    read_stops,
    with_seeds,
)
from edgellm.server.fields import Fields
from edgellm.server.texts import check_ids, encode_prompt, read_texts, text_of

N_TOKENS = 16  # of an answer, where nothing is said; OpenAI's
MAX_PROMPTS = 256


def read_completion(fields: Fields, served: Served, model: str, default: Sampling) -> Call:
    """
    Raises:
        ApiError: a field is of another form, or asks for what is not to be had.
    """
    prompts = _read_prompts(fields, served)
    is_stream, echo = bool(fields.flag("stream")), bool(fields.flag("echo"))
    include_usage = read_include_usage(fields, is_stream=is_stream)
    sampling, n = read_sampling(fields, default), fields.whole("n", 1, MAX_CHOICES) or 1
    n_logprobs = fields.whole("logprobs", 0, MAX_TOP)
    if is_stream and echo and n_logprobs is not None:
        raise fields.refuse("echo", "with logprobs cannot be streamed: leave out stream")
    if fields.whole("best_of", 1, MAX_CHOICES) not in (None, n):
        raise fields.refuse("best_of", "must be n: every choice that is made is told")
    n_most = fields.whole("max_tokens", 0, MAX_TOKENS)
    settings: dict[str, Any] = {
        "stop": read_stops(fields),
        "max_tokens": N_TOKENS if n_most is None else n_most,
        "n_draft": fields.whole("n_draft", 0, MAX_TOKENS),
        "n_logprobs": n_logprobs,
        "score_prompt": echo and n_logprobs is not None,
    }
    fields.end(HARMLESS)
    samplings = with_seeds(sampling, n)
    requests = [Request(prompt=tuple(prompt), sampling=one, **settings) for prompt in prompts for one in samplings]
    echoes = [text_of(served.vocabulary, prompt) for prompt in prompts for _ in samplings] if echo else []
    return Call(served, model, tuple(requests), len(prompts), is_stream, include_usage, tuple(echoes))


def _read_prompts(fields: Fields, served: Served) -> list[Sequence[int]]:
    several, is_marked = read_texts(fields, "prompt", MAX_PROMPTS), bool(fields.flag("parse_special"))
    suffix = fields.text("suffix")
    if suffix:
        return [_around_a_gap(fields, served, one, suffix) for one in several]
    return [_whole(fields, served, one, is_marked) for one in several]


def _whole(fields: Fields, served: Served, given: str | list[int], is_marked: bool) -> Sequence[int]:
    vocabulary = served.vocabulary
    if not isinstance(given, str):
        return check_ids(fields, "prompt", vocabulary, given)
    tokens = encode_prompt(served, given, begins=True, is_marked=is_marked)
    if not tokens and (begin := vocabulary.bos if vocabulary.bos is not None else vocabulary.eos) is not None:
        return [begin]  # as OpenAI's do: a text from nothing
    if not tokens:
        raise fields.refuse("prompt", "is empty: there is nothing to go on from")
    return tokens


def _around_a_gap(fields: Fields, served: Served, before: str | list[int], behind: str) -> Sequence[int]:
    vocabulary = served.vocabulary
    fill_in = find_fill_in(vocabulary)
    if fill_in is None:
        raise fields.refuse("suffix", "is not to be had: this model has no tokens to fill a gap with")
    tokens = (
        encode_prompt(served, before) if isinstance(before, str) else check_ids(fields, "prompt", vocabulary, before)
    )
    made = fill_in.prompt(list(tokens), encode_prompt(served, behind))
    return vocabulary.begun(made)
