"""What only the runtime can say of an exported pair: the table of its vocabularies, and how well the one drafts for the
other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm.runtime.backends.llama_cpp import LlamaModel, ModelOptions, engine_name
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.conversation import ChatSession
from edgellm.runtime.engine import load
from edgellm.runtime.text.vocabulary_map import VocabularyMap
from edgellm.runtime.text.vocabulary_match import overlap

QUESTIONS = (
    "Why does bread rise?",
    "Write a Python function that returns the median of a list.",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
)
N_TOKENS = 48  # of each answer
N_DRAFT = 4  # tokens a round: what acceptance is compared at


def tabulate(target: Path, draft: Path) -> bytes:
    """The table that the runtime reads beside the drafter: see `runtime.table`."""
    models = [LlamaModel(path, ModelOptions(vocabulary_only=True)) for path in (target, draft)]
    try:
        table = VocabularyMap.build(
            models[0].vocabulary,
            models[1].vocabulary,
            target_key=models[0].vocabulary_key(),
            draft_key=models[1].vocabulary_key(),
            engine=engine_name(),
        )
    finally:
        for model in models:
            model.close()
    return table.to_bytes()


def judge(target: Path, draft: Path, *, measure: bool) -> dict[str, Any]:
    """Shares of the vocabularies that are common and, if `measure`, which part of the drafts the target takes."""
    with load(target, draft, EngineOptions(n_ctx=1024, n_draft=N_DRAFT, fixed=True, copy=False, learn="off")) as engine:
        assert engine.draft_model is not None
        table = engine.table
        shared = table.overlap() if table else overlap(engine.model.vocabulary, engine.draft_model.vocabulary)
        facts: dict[str, Any] = {
            "target": target.name,
            "draft": draft.name,
            "same_vocabulary": engine.pair.same if engine.pair else False,
            "shared_of_target": round(shared.of_target, 4),
            "shared_of_draft": round(shared.of_draft, 4),
        }
        if measure:
            n_drafted = n_accepted = n_new = n_rounds = 0
            for question in QUESTIONS:
                session = ChatSession(engine)
                engine.backend.truncate(0)
                for _ in session.reply(question, max_tokens=N_TOKENS):
                    pass
                assert session.last is not None
                stats = session.last.stats
                n_drafted, n_accepted = n_drafted + stats.n_drafted, n_accepted + stats.n_accepted
                n_new, n_rounds = n_new + stats.n_new, n_rounds + stats.n_rounds
            facts["acceptance"] = round(n_accepted / n_drafted, 4) if n_drafted else 0.0
            facts["tokens_per_round"] = round(n_new / n_rounds, 4) if n_rounds else 0.0
            facts["n_tokens"] = n_new
        return facts
