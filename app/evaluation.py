"""How well a drafter fits a target: their vocabularies, their sizes and, if measured, what is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgellm.app.defaults import GOOD_SIZE_RATIO, MIN_TOKENS_PER_ROUND
from edgellm.app.drafter_adapters import DrafterAdapter, adapter_json, choose, pick
from edgellm.app.listener import SILENCE, Listener

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile
    from edgellm.runtime.answer import Stats
    from edgellm.runtime.bringup.loading import Model
    from edgellm.runtime.bringup.planning import EngineOptions
    from edgellm.runtime.engine import Engine
    from edgellm.runtime.text.vocabulary_match import Match, Overlap

# Short, of several kinds, and ours; enough to tell a good pair from a bad one, not to quote.
QUESTIONS = (
    "Write a Python function that counts the vowels in a string.",
    "A baker sells 14 loaves in the morning and twice as many in the afternoon. How many are sold that day?",
    "Explain to a child in three sentences why it rains.",
    "Name the months that have 30 days, in a comma-separated list.",
)
# Of exports alone: manifests hold what was accepted of them, and are compared.
EXPORT_QUESTIONS = (
    "Why does bread rise?",
    "Write a Python function that returns the median of a list.",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
)
N_TOKENS = 48  # of each answer
N_DRAFT = 4  # tokens a round: what acceptance is compared at


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of a drafter's proposals alone: nothing is copied or learnt, and every draft is as long."""

    n_draft: int  # tokens a round
    acceptance: float  # share of what was drafted
    tokens_per_round: float
    tokens_per_s: float
    draft_share: float  # of the time, in the drafter


@dataclass(frozen=True, slots=True)
class PairSide:
    """One side of a pair."""

    name: str
    architecture: str
    n_tokens: int
    n_params: int
    n_bytes: int
    chat_template: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: Literal["fits", "doubtful", "poor", "does not fit"]
    sentence: str


@dataclass(frozen=True, slots=True)
class PairReport:
    """What is known of a pair."""

    target: PairSide
    draft: PairSide
    match: Match
    to_draft: Overlap  # the target's vocabulary in the drafter's tokens
    to_target: Overlap  # and the other way round
    measured: Acceptance | None
    adapter: DrafterAdapter | None = None  # that the drafter would run with, and was measured with

    @property
    def bytes_ratio(self) -> float:
        return self.target.n_bytes / self.draft.n_bytes

    @property
    def params_ratio(self) -> float:
        return self.target.n_params / max(1, self.draft.n_params)

    @property
    def verdict(self) -> Verdict:
        """The drafter's price is its size; what it earns is known only when measured."""
        ratio, measured = self.bytes_ratio, self.measured
        how = "in the target's own vocabulary" if self.match.same else "through translation"
        size = f"{ratio:.1f} times smaller"
        if ratio <= 1:
            sentence = "Does not fit: the drafter is no smaller than the target, so it can only slow it down."
            return Verdict("does not fit", sentence)
        if measured and not measured.acceptance:
            return Verdict("does not fit", "Does not fit: nothing of what the drafter proposed was accepted.")
        earned = f", and gives {measured.tokens_per_round:.1f} tokens a pass of the target" if measured else ""
        if ratio < GOOD_SIZE_RATIO:
            sentence = f"it drafts {how}{earned}, but is only {size}, so a draft costs much of what it saves."
            return Verdict("doubtful", f"Doubtful: {sentence}")
        if measured and measured.tokens_per_round < MIN_TOKENS_PER_ROUND:
            sentence = f"Poor: the drafter is {size}, but agrees with the target too seldom{earned}."
            return Verdict("poor", sentence)
        return Verdict("fits", f"Fits: it drafts {how}{earned}, and is {size}.")

    def to_json(self) -> dict[str, Any]:
        """The documented object."""
        there, back = self.to_draft, self.to_target
        return {
            "target": asdict(self.target),
            "draft": asdict(self.draft),
            "same_vocabulary": self.match.same,
            "reason": self.match.reason,
            "n_shared": there.n_shared,
            "of_target": there.of_target,
            "of_draft": there.of_draft,
            "target_to_draft": {"n_split": there.n_split, "mean_split": there.mean_split},
            "draft_to_target": {"n_split": back.n_split, "mean_split": back.mean_split},
            "bytes_ratio": self.bytes_ratio,
            "params_ratio": self.params_ratio,
            "draft_adapter": adapter_json(self.adapter),
            "measured": asdict(self.measured) if self.measured else None,
            "verdict": self.verdict.sentence,
        }


def evaluate(
    target: ModelFile,
    draft: ModelFile,
    *,
    measure: bool,
    draft_adapter: str | None = None,
    listener: Listener = SILENCE,
) -> PairReport:
    """Compare two models; if `measure`, let the pair answer four short questions too.

    Args:
        draft_adapter: as `drafter_adapters.choose` takes it.

    Raises:
        LoadError: one of them cannot be loaded, or holds a vocabulary only.
        DraftAdapterError: the adapter cannot be used.
    """
    from edgellm.runtime.backends.base import LoadError
    from edgellm.runtime.backends.llama_model import ModelOptions
    from edgellm.runtime.bringup.loading import open_model
    from edgellm.runtime.text.vocabulary_match import match, overlap

    files = (target, draft)
    models = [open_model(file.path, ModelOptions(vocabulary_only=True)) for file in files]
    try:
        for model in models:
            if not model.n_params:
                raise LoadError(f"{model.path} holds a vocabulary only: there are no weights in it to run")
        ours, theirs = (model.vocabulary for model in models)
        with listener.working("comparing the vocabularies …"):
            matched, there, back = match(ours, theirs), overlap(ours, theirs), overlap(theirs, ours)
        facts = [side_of(file, model) for file, model in zip(files, models, strict=True)]
    finally:
        for model in models:
            model.close()
    measured, adapter = None, pick(target, draft, draft_adapter, listener=listener)
    if measure:
        chosen = choose(target, draft, draft_adapter, listener=listener)
        adapter = chosen.adapter
        with listener.working("measuring …"):
            measured = acceptance(target.path, chosen.path)
    return PairReport(facts[0], facts[1], matched, there, back, measured, adapter)


def acceptance(target: Path, draft: Path | None) -> Acceptance:
    """What the target takes of the drafter's proposals, greedily; None for the head inside its own file.

    Raises:
        LoadError: one of them cannot be loaded.
    """
    from edgellm.runtime.bringup.load import load

    with load(target, draft, replace(_drafter_alone(n_ctx=512), head=draft is None)) as engine:
        total = ask(engine, QUESTIONS)
        return Acceptance(
            n_draft=engine.n_draft,
            acceptance=total.acceptance,
            tokens_per_round=total.tokens_per_round,
            tokens_per_s=total.tokens_per_s,
            draft_share=total.draft_s / total.decode_s if total.decode_s else 0.0,
        )


def ask(engine: Engine, questions: Sequence[str]) -> Stats:
    """What answers to all of the questions cost together, each with an empty context."""
    from edgellm.runtime.answer import Stats

    total = Stats()
    for question in questions:
        engine.backend.truncate(0)
        total.add(engine.generate(question, max_tokens=N_TOKENS).finish().stats)
    return total


def judge(target: Path, draft: Path, *, measure: bool) -> dict[str, Any]:
    """What a manifest says of an exported pair: shares of the vocabularies that are common and, if `measure`, which
    part of the drafts the target takes.
    """
    from edgellm.runtime.bringup.load import load
    from edgellm.runtime.text.vocabulary_match import overlap

    with load(target, draft, _drafter_alone(n_ctx=1024)) as engine:
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
            total = ask(engine, EXPORT_QUESTIONS)
            facts["acceptance"] = round(total.acceptance, 4)
            facts["tokens_per_round"] = round(total.tokens_per_round, 4)
            facts["n_tokens"] = total.n_new
        return facts


def tabulate(target: Path, draft: Path) -> bytes:
    """The vocabulary map that the runtime reads beside the drafter: see `runtime.text.vocabulary_map`."""
    from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
    from edgellm.runtime.backends.llama_process import engine_name
    from edgellm.runtime.text.vocabulary_map import VocabularyMap

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


def _drafter_alone(n_ctx: int) -> EngineOptions:
    from edgellm.runtime.bringup.planning import EngineOptions

    return EngineOptions(n_ctx=n_ctx, n_draft=N_DRAFT, fixed=True, copy=False, learn="off")


def side_of(file: ModelFile, model: Model) -> PairSide:
    """What a report says of one of its models."""
    return PairSide(
        name=file.reference,
        architecture=model.architecture,
        n_tokens=model.vocabulary.n_tokens,
        n_params=model.n_params,
        n_bytes=file.n_bytes,
        chat_template=model.chat_template is not None,
    )
