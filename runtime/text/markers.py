"""What a model writes around its thought, found in its chat template or among its tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from edgellm.runtime.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Markers:
    """What a family writes around a thought, control tokens spelled out."""

    opening: str
    closing: str
    forced: str  # ends a thought early and begins the answer
    answers: tuple[str, ...] = ()  # begin an answer, in families whose parts all say what they are
    between: tuple[str, ...] = ()  # belong to neither
    in_template: bool = False  # the chat template speaks of them, the vocabulary does not only have them

    @property
    def has_parts(self) -> bool:
        """Thoughts may come anywhere; where parts do not say what they are, a thought comes first or never."""
        return bool(self.answers)

    def occur_in(self, text: str) -> bool:
        return any(marker in text for marker in (self.opening, *self.answers))


# What a template or a vocabulary must have all of, and the markers of those that do.
_FAMILIES: tuple[tuple[tuple[str, ...], Markers], ...] = (
    (
        ("<|channel|>", "<|message|>", "<|start|>", "<|end|>"),  # gpt-oss
        Markers(
            "<|channel|>analysis<|message|>",
            "<|end|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
            ("<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
            ("<|start|>assistant",),
        ),
    ),
    (
        ("<|think|>", "<|content|>", "<|begin|>", "<|end|>"),  # Solar Open
        Markers(
            "<|think|>",
            "<|end|>",
            "<|end|><|begin|>assistant<|content|>",
            ("<|content|>",),
            ("<|begin|>assistant",),
        ),
    ),
    (
        (" to=self<|message|>", "<|eom|>"),  # Muse
        Markers(
            " to=self<|message|>",
            "<|eom|>",
            "<|eom|><|start|>assistant<|message|>",
            (" to=user<|message|>", "<|message|>"),
            ("<|start|>assistant",),
        ),
    ),
    (
        ("<|open|>", "<|close|>", "<|sep|>"),  # Kimi K3
        Markers(
            "<|open|>think<|sep|>",
            "<|close|>think<|sep|>",
            "<|close|>think<|sep|><|open|>response<|sep|>",
            ("<|open|>response<|sep|>",),
            ("<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        ),
    ),
    (("<|channel>", "<channel|>"), Markers("<|channel>thought", "<channel|>", "\n<channel|>")),  # Gemma 4
    (("[THINK]", "[/THINK]"), Markers("[THINK]", "[/THINK]", "[/THINK]")),  # Magistral
    (
        ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
        Markers("<|START_THINKING|>", "<|END_THINKING|>", "<|END_THINKING|>"),
    ),
    (
        ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
        Markers("<|inner_prefix|>", "<|inner_suffix|>", "<|inner_suffix|>"),
    ),
    (
        ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),  # Apriel
        Markers("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", "\n[BEGIN FINAL RESPONSE]\n"),
    ),
)
_TAG = re.compile(r"<((?:\w+:)?think(?:ing)?(?::\w+)?)>")  # <think>, <thinking>, <seed:think>, <think:6124c78e>


def find_markers(template: str | None, vocabulary: Vocabulary) -> Markers | None:
    """Those of a model, found in its chat template or among its tokens; None where it knows of no thoughts."""
    template, literals = template or "", vocabulary.literals
    for spoken_of in (True, False):
        known = template if spoken_of else "\n".join(literals)
        for signature, markers in _FAMILIES:
            if all(text in known for text in signature):
                return replace(markers, in_template=spoken_of)
        for name in dict.fromkeys(match[1] for match in _TAG.finditer(f"{template} {known}")):
            if f"</{name}>" in known:
                return Markers(f"<{name}>", f"</{name}>", f"\n</{name}>\n\n", in_template=spoken_of)
        if "</think>" in known:  # DeepSeek R1's template closes what the model opens
            return Markers("<think>", "</think>", "\n</think>\n\n", in_template=spoken_of)
    return None


def marker_ids(text: str, vocabulary: Vocabulary) -> list[int]:
    """Markers as a model writes them: control tokens where the vocabulary has them, text elsewhere."""
    ids: list[int] = []
    for piece, token in split_markers(text, vocabulary):
        ids += vocabulary.encode_leniently(piece.encode()) if token is None else [token]
    return ids


def opens_thought(markers: Markers, opening: str) -> bool:
    """Whether a prompt that ends with `opening` leaves the model inside its thought."""
    others = (markers.closing, *markers.answers)
    return opening.rfind(markers.opening) > max(map(opening.rfind, others))


def split_markers(text: str, vocabulary: Vocabulary) -> Iterator[tuple[str, int | None]]:
    """Pieces of text, and between them the tokens whose spelling the text holds."""
    literals = sorted((name for name in vocabulary.literals if _is_marker(name) and name in text), key=len)
    pattern = "|".join(map(re.escape, reversed(literals)))
    end = 0
    for match in re.finditer(pattern, text) if pattern else ():
        if match.start() > end:
            yield text[end : match.start()], None
        yield match.group(), vocabulary.literals[match.group()]
        end = match.end()
    if end < len(text):
        yield text[end:], None


def _is_marker(literal: str) -> bool:
    return len(literal) > 2 and literal[0] in "<["
