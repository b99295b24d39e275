"""Prompts of models that fill a gap in a text: what stands before it and behind it, told apart by control tokens."""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.runtime.request import BadRequest
from edgellm.runtime.text.vocabulary import Vocabulary

# (before, behind, gap) as families spell them: Qwen and CodeGemma, StarCoder, Granite, DeepSeek, Code Llama.
_FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


@dataclass(frozen=True, slots=True)
class FillIn:
    """A vocabulary's control tokens around a gap."""

    before: int
    behind: int
    gap: int

    def prompt(self, before: list[int], behind: list[int]) -> list[int]:
        """What the model goes on from with the text of the gap (Bavarian et al. 2022, arXiv:2207.14255)."""
        return [self.before, *before, self.behind, *behind, self.gap]


def find_fill_in(vocabulary: Vocabulary) -> FillIn | None:
    """None where the model has no such tokens."""
    for names in _FAMILIES:
        found = [vocabulary.literals.get(name) for name in names]
        if all(token is not None for token in found):
            before, behind, gap = (token for token in found if token is not None)
            return FillIn(before, behind, gap)
    return None


def gone_on_from(vocabulary: Vocabulary, before: str, behind: str = "") -> list[int]:
    """The tokens of a text that a model goes on from as it is, or of one with a gap to fill.

    Raises:
        BadRequest: there is nothing to go on from, or the model has no tokens to fill a gap with.
        CannotEncode: the vocabulary cannot spell it.
    """
    tokens = vocabulary.encode(before.encode())
    if behind:
        fill_in = find_fill_in(vocabulary)
        if fill_in is None:
            raise BadRequest("this model has no tokens to fill a gap with: leave out what stands behind it")
        tokens = fill_in.prompt(tokens, vocabulary.encode(behind.encode()))
    tokens = vocabulary.begun(tokens)
    if not tokens:
        raise BadRequest("the text is empty: there is nothing to go on from")
    return tokens
