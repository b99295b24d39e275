"""Thoughts apart from answers: the markers that a model puts around its thought, and a stream of tokens cut at them.

A marker that is a token of the vocabulary counts as that token alone, so text that merely spells it stays text; one
that is not is found as text, however it is cut into tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edgellm.runtime.stopping import TextStream
from edgellm.runtime.vocabulary import Vocabulary

_TOKEN = 256  # an atom below it is a byte of text, one from it on a token: _TOKEN + id
_EDGE = b"\r\n"  # belongs to the markers, at the edges of a thought and behind it


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
    for piece, token in _split(text, vocabulary):
        ids += vocabulary.encode_leniently(piece.encode()) if token is None else [token]
    return ids


def opens_thought(markers: Markers, opening: str) -> bool:
    """Whether a prompt that ends with `opening` leaves the model inside its thought."""
    others = (markers.closing, *markers.answers)
    return opening.rfind(markers.opening) > max(map(opening.rfind, others))


class ThoughtStream:
    """Cuts the tokens of an answer into thought and text, token by token."""

    def __init__(self, markers: Markers | None, vocabulary: Vocabulary, *, in_thought: bool = False) -> None:
        """`in_thought`: the prompt opened it."""
        self._vocabulary, self._markers = vocabulary, markers
        self.in_thought = in_thought
        self.n_thought = 0  # tokens since the thought was opened, over all of them
        self._has_crossed = False
        self._is_begun = False  # something of this part was settled, so that white space is no edge any more
        self._pending: list[int] = []  # atoms that may become a marker
        self._space = b""  # newlines that may turn out to be an edge
        self._atoms: dict[str, list[int]] = {}
        if markers is not None:
            known = (markers.opening, markers.closing, *markers.answers, *markers.between)
            self._atoms = {marker: _atoms(marker, vocabulary) for marker in known}
        self._tokens = {atom - _TOKEN for atoms in self._atoms.values() for atom in atoms if atom >= _TOKEN}

    def feed(self, token: int) -> list[tuple[bool, bytes]]:
        """What is settled now, in order: (whether it is of the thought, bytes)."""
        was_in_thought = self.in_thought
        active = self._active()
        if not active and not self._is_edge():
            return [(False, self._vocabulary.piece(token))]
        found = list(self._settle(token))
        self.n_thought += was_in_thought and self.in_thought
        return found

    def end(self) -> list[tuple[bool, bytes]]:
        """What was held back, once nothing follows."""
        found = list(self._emit(self._pending))
        if self._space and not self.in_thought and not self._has_crossed:
            found.append((False, self._space))
        self._pending, self._space = [], b""
        return found

    def _active(self) -> list[str]:
        """The markers that may come now."""
        markers = self._markers
        if markers is None:
            return []
        if markers.has_parts:
            return list(self._atoms)
        if self.in_thought:  # some models open again what the prompt has opened
            return [markers.closing] if self._is_begun else [markers.closing, markers.opening]
        return [] if self._has_crossed or self._is_begun else [markers.opening]

    def _is_edge(self) -> bool:
        return self._has_crossed and not self._is_begun

    def _settle(self, token: int) -> Iterator[tuple[bool, bytes]]:
        is_marker = token in self._tokens
        for atom in [_TOKEN + token] if is_marker else self._vocabulary.piece(token):
            self._pending.append(atom)
            active = {name: self._atoms[name] for name in self._active()}
            ended = [name for name, atoms in active.items() if self._pending[-len(atoms) :] == atoms]
            if ended:
                name = max(ended, key=lambda name: len(active[name]))
                yield from self._emit(self._pending[: -len(active[name])])
                self._pending = []
                self._cross(name)
                continue
            n_held = max((_n_begun(self._pending, atoms) for atoms in active.values()), default=0)
            cut = len(self._pending) - n_held
            settled, self._pending = self._pending[:cut], self._pending[cut:]
            yield from self._emit(settled)

    def _cross(self, name: str) -> None:
        markers = self._markers
        assert markers is not None
        self._has_crossed, self._is_begun, self._space = True, False, b""
        if name not in markers.between:
            self.in_thought = name == markers.opening

    def _emit(self, atoms: Sequence[int]) -> Iterator[tuple[bool, bytes]]:
        if not atoms:
            return
        data = b"".join(self._vocabulary.piece(a - _TOKEN) if a >= _TOKEN else bytes([a]) for a in atoms)
        data, self._space = self._space + data, b""
        if not self._is_begun:
            rest = data.lstrip(_EDGE)
            if not rest and (self.in_thought or self._has_crossed):
                return
            if not rest:  # an opening may follow
                self._space = data
                return
            if self.in_thought or self._has_crossed:
                data = rest
        self._is_begun = True
        if self.in_thought:  # they may be the last
            body = data.rstrip(_EDGE)
            data, self._space = body, data[len(body) :]
        if data:
            yield self.in_thought, data


class AnswerStream:
    """The tokens of an answer, and the thought and the text that they make. Stop strings end the text alone."""

    def __init__(
        self, markers: Markers | None, vocabulary: Vocabulary, stops: Sequence[str] = (), *, in_thought: bool = False
    ) -> None:
        self._vocabulary = vocabulary
        self._parts = ThoughtStream(markers, vocabulary, in_thought=in_thought)
        self._streams = {True: TextStream(), False: TextStream(stops)}
        self._pieces: dict[bool, list[str]] = {True: [], False: []}
        self.tokens: list[int] = []
        self.is_rewritten = False  # tokens differ from what was generated

    @property
    def in_thought(self) -> bool:
        return self._parts.in_thought

    @property
    def n_thought(self) -> int:
        return self._parts.n_thought

    @property
    def stopped(self) -> bool:
        """A stop string came, and the text ends before it."""
        return self._streams[False].stopped

    @property
    def text(self) -> str:
        return "".join(self._pieces[False])

    @property
    def thought(self) -> str:
        return "".join(self._pieces[True])

    def feed(self, token: int) -> tuple[str, str]:
        """The pieces of thought and of text that may be shown now."""
        self.tokens.append(token)
        return self._shown(self._parts.feed(token))

    def add(self, tokens: Sequence[int]) -> list[tuple[str, str]]:
        """`feed` of tokens that the model did not choose."""
        n_thought = self.n_thought
        shown = [self.feed(token) for token in tokens]
        self.is_rewritten, self._parts.n_thought = True, n_thought
        return shown

    def end(self) -> tuple[str, str]:
        """What was held back, once nothing follows."""
        return self._shown(self._parts.end(), final=True)

    def _shown(self, settled: Sequence[tuple[bool, bytes]], *, final: bool = False) -> tuple[str, str]:
        shown = {True: "", False: ""}
        for is_thought, data in settled:
            shown[is_thought] += self._streams[is_thought].feed(data)
        for is_thought, stream in self._streams.items():
            if final:
                shown[is_thought] += stream.feed(b"", final=True)
            self._pieces[is_thought].append(shown[is_thought])
        return shown[True], shown[False]


def _split(text: str, vocabulary: Vocabulary) -> Iterator[tuple[str, int | None]]:
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


def _atoms(marker: str, vocabulary: Vocabulary) -> list[int]:
    atoms: list[int] = []
    for text, token in _split(marker, vocabulary):
        atoms += text.encode() if token is None else [_TOKEN + token]
    return atoms


def _n_begun(pending: Sequence[int], marker: Sequence[int]) -> int:
    """How many atoms at the end of `pending` begin `marker`."""
    for n in range(min(len(marker) - 1, len(pending)), 0, -1):
        if pending[-n:] == marker[:n]:
            return n
    return 0
