"""What answers cost, as clients read it: OpenAI's `usage`, and llama.cpp's `timings`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm.runtime.answer import Answer, Stats
from edgellm.server.calls import Call


def usage(call: Call, answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of all choices; a prompt counts once, however many choices it has."""
    of_prompts = [answer.stats for answer in answers[:: call.n_choices_each]]
    n_prompt = sum(stats.n_prompt for stats in of_prompts)
    n_new = sum(answer.stats.n_new for answer in answers)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": {"cached_tokens": sum(stats.n_cached for stats in of_prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(answer.stats.n_thought for answer in answers)},
    }


def timings(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of all choices together; llama.cpp's names, and what drafting brought."""
    total = Stats()
    for answer in answers:
        total.add(answer.stats)
    n_read = total.n_prompt - total.n_cached
    return {
        "cache_n": total.n_cached,
        "prompt_n": n_read,
        "prompt_ms": 1000 * total.prefill_s,
        "prompt_per_second": n_read / total.prefill_s if total.prefill_s else 0.0,
        "predicted_n": total.n_new,
        "predicted_ms": 1000 * total.decode_s,
        "predicted_per_second": total.tokens_per_s,
        "draft_n": total.n_drafted,
        "draft_n_accepted": total.n_accepted,
        "tokens_per_round": total.tokens_per_round,
        "accepted_by": dict(total.accepted_by),
    }
