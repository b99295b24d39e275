"""What an answer cost, in a line below it and in `/stats`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.runtime.answer import Answer
    from edgellm.runtime.conversation import ChatSession


def status_line(answer: Answer, session: ChatSession) -> str:
    """Speed, tokens a round, acceptance and context, and why the answer ended where that is not plain."""
    stats, n_ctx = answer.stats, session.engine.backend.n_ctx
    parts = [f"{stats.tokens_per_s:.1f} tok/s"]
    engine = session.engine
    if (engine.draft_model is not None or engine.drafts_itself) and stats.n_drafted:
        parts += [f"{stats.tokens_per_round:.1f} tokens a round", f"{stats.acceptance:.0%} of drafts accepted"]
    elif stats.n_accepted:  # from what was said before, without a draft model
        parts += [f"{stats.tokens_per_round:.1f} tokens a round", f"{stats.n_accepted:,} tokens copied"]
    if stats.n_thought:
        parts.append(f"{stats.n_thought:,} of {stats.n_new:,} tokens thought")
    parts.append(f"context {session.n_context:,} of {n_ctx:,}")
    alone = len(session.messages) <= 2  # to forget what was said before would not help
    why = {
        "interrupted": "stopped",
        "length": f"stopped after {stats.n_new:,} tokens",
        "context": "the context is full: start again with a larger --ctx"
        if alone
        else "the context is full: /clear, or start again with a larger --ctx or with --on-full shift",
    }
    if answer.finish_reason in why:
        parts.append(why[answer.finish_reason])
    return textwrap.fill(f"[{' · '.join(parts)}]", shutil.get_terminal_size().columns, break_on_hyphens=False)


def forgotten_line(answer: Answer) -> str:
    """What the model no longer knows."""
    return f"(the context was full: the first {n_messages(answer.n_forgotten)} are forgotten, /save still writes them)"


def unanswered_line(answer: Answer) -> str:
    """Why there is no text; empty where there is."""
    if answer.text.strip() or not answer.reasoning:
        return ""
    if answer.finish_reason == "stop":
        return "(the model ended inside its thought, without an answer)"
    return "(it was stopped inside its thought: limit that with --think-budget, or allow more with --max-tokens)"


def incomplete_line(answer: Answer) -> str:
    """That an answer which is held to something was cut off before it was whole; empty where it was not."""
    why = {
        "stop": "",
        "stop_string": "by a text of --stop",
        "length": "by --max-tokens",
        "context": "by a full context",
    }
    how = why.get(answer.finish_reason, "")
    return f"(the answer was cut off {how}: it is not all that was asked for)" if how else ""


def cost_rows(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """Label and text of what the last answer took, and all of them."""
    stats = answers[-1].stats
    rows = [
        (
            "prompt",
            f"{stats.n_prompt:,} tokens, {stats.n_cached:,} of them cached, read in {stats.prefill_s:.2f} s",
        ),
        ("answer", f"{stats.n_new:,} tokens in {stats.decode_s:.2f} s: {stats.tokens_per_s:.1f} tok/s"),
        *([("thought", f"{stats.n_thought:,} of these tokens")] if stats.n_thought else []),
        ("rounds", f"{stats.n_rounds:,}, {stats.tokens_per_round:.2f} tokens each"),
    ]
    for source, n_drafted in stats.drafted_by.items():
        n_accepted = stats.accepted_by[source]
        rows.append((f"by {source}", f"{n_drafted:,} drafted, {n_accepted:,} accepted ({n_accepted / n_drafted:.0%})"))
    times = {
        "drafting": stats.draft_s,
        "translating": stats.translate_s,
        "verifying": stats.verify_s,
        "choosing": stats.sample_s,
    }
    rows.append(("time", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())))
    n_new, decode_s = sum(a.stats.n_new for a in answers), sum(a.stats.decode_s for a in answers)
    speed = f": {n_new / decode_s:.1f} tok/s" if decode_s else ""
    rows.append(("so far", f"{_n('answer', len(answers))}, {n_new:,} tokens in {decode_s:.2f} s{speed}"))
    return rows


def _n(noun: str, count: int) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def n_messages(count: int) -> str:
    return _n("message", count)
