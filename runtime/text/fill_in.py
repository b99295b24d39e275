"""Prompts of models that fill a gap in a text: what stands before it and behind it, told apart by control tokens."""

from __future__ import annotations

from dataclasses import dataclass

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
