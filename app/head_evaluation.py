"""How well the draft head inside a target's file (MTP) drafts for it: its size and, if measured, what is accepted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgellm.app.defaults import MIN_TOKENS_PER_ROUND, BadSetting
from edgellm.app.evaluation import Acceptance, PairSide, Verdict, acceptance, side_of
from edgellm.app.listener import SILENCE, Listener

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile


@dataclass(frozen=True, slots=True)
class HeadReport:
    """What is known of a target and the head inside its file. Sizes in bytes."""

    target: PairSide
    n_params: int  # of the head
    n_bytes: int  # likewise
    shared_bytes: int  # of the target's weights that a token of the head reads too: the output matrix
    bytes_ratio: float  # that a token of the target reads, to one of the head
    measured: Acceptance | None

    @property
    def verdict(self) -> Verdict:
        """The head's price is what it reads; what it earns is known only when measured."""
        measured = self.measured
        if measured is None:
            return Verdict("fits", "Fits: the head was made for this target; --measure says what it earns.")
        if not measured.acceptance:
            return Verdict("does not fit", "Does not fit: nothing of what the head proposed was accepted.")
        earned = f"it gives {measured.tokens_per_round:.1f} tokens a pass of the target"
        if measured.tokens_per_round < MIN_TOKENS_PER_ROUND:
            return Verdict("poor", f"Poor: {earned}.")
        return Verdict("fits", f"Fits: {earned}.")

    def to_json(self) -> dict[str, Any]:
        """The documented object."""
        return {
            "target": asdict(self.target),
            "draft": None,
            "draft_head": {"n_params": self.n_params, "n_bytes": self.n_bytes, "shared_bytes": self.shared_bytes},
            "same_vocabulary": True,
            "bytes_ratio": self.bytes_ratio,
            "measured": asdict(self.measured) if self.measured else None,
            "verdict": self.verdict.sentence,
        }


def evaluate_head(target: ModelFile, *, measure: bool, listener: Listener = SILENCE) -> HeadReport:
    """What a target's own head is; if `measure`, let the two answer four short questions too.

    Raises:
        BadSetting: the file has none that drafts here.
        LoadError, GgufError, UnknownShape: it cannot be loaded.
    """
    from edgellm.app.own_heads import drafts_itself
    from edgellm.memory.draft_heads import OWN_HEAD, head_shape
    from edgellm.memory.shape import from_header
    from edgellm.memory.split import read_model
    from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions

    drafts_itself(target, OWN_HEAD)
    header = read_model(target.path)
    whole = from_header(header, target.name)
    head = head_shape(header, whole)
    if head is None:
        raise BadSetting(f"the head of {target.name} cannot be sized: its layers do not attend")
    model = LlamaModel(target.path, ModelOptions(vocabulary_only=True))
    try:
        side = side_of(target, model)
    finally:
        model.close()
    measured = None
    if measure:
        with listener.working("measuring …"):
            measured = acceptance(target.path, None)
    ratio = whole.bytes_read_per_token / max(1, head.bytes_read_per_token)
    return HeadReport(side, head.n_params, head.weight_bytes, head.shared_bytes, round(ratio, 2), measured)
