"""How well a drafter's vocabulary fits a target's."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.runtime.text.vocabulary import CannotEncode, Vocabulary

MAX_DIFFERENT = 0.005  # of the shared ids: one renamed marker is no other vocabulary


@dataclass(frozen=True, slots=True)
class Match:
    """Whether two vocabularies may be used as one."""

    same: bool
    reason: str  # a sentence
    different: frozenset[int] = frozenset()  # ids of the drafter that mean something else to the target, or nothing


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two vocabularies share, by bytes."""

    n_target: int  # tokens that stand for text
    n_draft: int
    n_shared: int
    n_split: int  # target tokens that the drafter spells with several of its own
    mean_split: float  # its tokens for one of those

    @property
    def of_target(self) -> float:
        return self.n_shared / max(1, self.n_target)

    @property
    def of_draft(self) -> float:
        return self.n_shared / max(1, self.n_draft)


def match(target: Vocabulary, draft: Vocabulary) -> Match:
    """Whether the drafter's ids are the target's: equal bytes at equal ids, but for padding and a few tokens."""
    n = min(target.n_tokens, draft.n_tokens)
    allowed = int(n * MAX_DIFFERENT)
    different = set()
    for token in range(n):
        if target.piece(token) != draft.piece(token) or (token in target.end_tokens) != (token in draft.end_tokens):
            different.add(token)
            if len(different) > allowed:
                return Match(
                    False,
                    f"the vocabularies differ: {target.n_tokens:,} and {draft.n_tokens:,} tokens, and of the first "
                    f"{token + 1:,} ids more than {allowed:,} mean different bytes",
                )
    beyond = frozenset(range(n, draft.n_tokens))
    text_beyond = sum(
        1 for token in range(n, target.n_tokens) if target.kinds[token] == "normal" and target.piece(token)
    )
    if text_beyond > allowed:
        return Match(False, f"the target has {text_beyond:,} tokens behind the drafter's {draft.n_tokens:,}")
    reason = "the vocabularies are the same"
    if different or target.n_tokens != draft.n_tokens:
        reason += f" but for {len(different)} ids and {abs(target.n_tokens - draft.n_tokens)} of padding"
    return Match(True, reason, frozenset(different) | beyond)


def overlap(target: Vocabulary, draft: Vocabulary) -> Overlap:
    """Count shared tokens, and how the drafter spells the others."""
    ours, theirs = target.text_tokens(), draft.text_tokens()
    n_shared = len(ours.keys() & theirs.keys())
    lengths = []
    for piece in ours.keys() - theirs.keys():
        try:
            piece.decode("utf-8")  # parts of characters are never drafted by themselves
            lengths.append(len(draft.encode(piece)))
        except (UnicodeDecodeError, CannotEncode):
            continue
    return Overlap(
        n_target=len(ours),
        n_draft=len(theirs),
        n_shared=n_shared,
        n_split=len(lengths),
        mean_split=sum(lengths) / len(lengths) if lengths else 0.0,
    )
