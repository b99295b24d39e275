"""Write down what a target answers and what a drafter would have drafted at every place of the answer.

    python benchmarks/record.py TARGET.gguf DRAFTER.gguf PROMPTS.jsonl OUT.jsonl [--tokens 128] [--depth 12]

A recording holds everything that a policy of drafting can ask for, so policies are compared by replaying it
(`benchmarks/simulate.py`) in seconds and without a model. Greedy on both sides.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.runtime.bringup.load import load
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.comparison import read_prompts
from edgellm.runtime.conversation import ChatSession
from edgellm.runtime.drafters.kv_sync import KvSync
from edgellm.runtime.drafters.model import top_of
from edgellm.runtime.engine import Engine
from edgellm.runtime.text.template import Message
from edgellm.runtime.text.translate import GrowingText

REACH = 512  # tokens before the answer that the drafter reads


def record(engine: Engine, backend: Any, turns: tuple[str, ...], n_tokens: int, depth: int) -> list[dict[str, Any]]:
    """One record for each turn: prompt, answer, and the drafts at every place of the answer."""
    assert engine.draft_model is not None
    target, own = engine.model.vocabulary, engine.draft_model.vocabulary
    session, records = ChatSession(engine), []
    engine.backend.truncate(0)
    for turn in turns:
        for _ in session.reply(turn, max_tokens=n_tokens):
            pass
        assert session.last is not None
        messages = session.messages[:-1]
        prompt = engine.template.render(messages)
        end = engine.template.turn_end
        answer = list(session.last.tokens) + ([end] if session.last.finish_reason == "stop" and end is not None else [])
        drafter_prompt = engine.draft_prompt([Message(m.role, m.content) for m in messages])
        assert drafter_prompt is not None
        context, kv = GrowingText(own, drafter_prompt[-REACH:]), KvSync(backend)
        kv.sync(context.tokens, 0)
        drafts = []
        for token in answer:
            drafts.append(_draft(kv, context, depth, own.end_tokens))
            kv.sync(context.tokens, context.append(target.decode([token])))
        records.append({"prompt": prompt, "answer": answer, "own_prompt_len": len(drafter_prompt), "drafts": drafts})
    return records


def _draft(kv: KvSync, context: GrowingText, depth: int, ends: frozenset[int]) -> dict[str, Any]:
    n_held = len(context.tokens)
    kv.sync(context.tokens, n_held)
    tokens, tops, entropies = [], [], []
    logits = kv.read(context.tokens)
    while True:
        token, top, entropy = top_of(logits)
        tokens.append(token)
        tops.append(round(top, 4))
        entropies.append(round(entropy, 3))
        if len(tokens) == depth or token in ends:
            return {
                "unfinished": list(context.unfinished),
                "tokens": tokens,
                "top": tops,
                "entropy": entropies,
            }
        logits = kv.extend([token])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("drafter", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    options = EngineOptions(n_ctx=2560, n_draft=4, fixed=True, copy=False, learn="off")
    np.seterr(all="ignore")
    with load(arguments.target, arguments.drafter, options) as engine, arguments.out.open("w") as out:
        backend = engine.controller.model.backend  # type: ignore[union-attr]
        for prompt in read_prompts(arguments.prompts, arguments.limit):
            for turn, item in enumerate(record(engine, backend, prompt.turns, arguments.tokens, arguments.depth)):
                out.write(json.dumps({"id": prompt.id, "task": prompt.task, "turn": turn, **item}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
