"""Thoughts apart from answers: what settings of thinking come to, and a stream of tokens cut at a model's markers.

A marker that is a token of the vocabulary counts as that token alone, so text that merely spells it stays text; one
that is not is found as text, however it is cut into tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgellm.runtime.text.markers import Markers, find_markers, marker_ids, opens_thought, split_markers
from edgellm.runtime.text.stopping import TextStream
from edgellm.runtime.text.template import ChatTemplate, Message, TemplateError
from edgellm.runtime.text.tool_stream import CallStream
from edgellm.runtime.text.tools import ToolCall
from edgellm.runtime.text.vocabulary import Vocabulary

_TOKEN = 256  # an atom below it is a byte of text, one from it on a token: _TOKEN + id
_EDGE = b"\r\n"  # belongs to the markers, at the edges of a thought and behind it


@dataclass(slots=True)
class Thinking:
    """Whether a model thinks before it answers, and for how long."""

    template: ChatTemplate
    vocabulary: Vocabulary
    think: bool | None = None  # None leaves it to the template
    budget: int | None = None  # tokens of a thought; None: as many as it takes
    markers: Markers | None = field(init=False)
    _n_left_out: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.markers = find_markers(self.template.source, self.vocabulary)

    @classmethod
    def none(cls, template: ChatTemplate, vocabulary: Vocabulary) -> Thinking:
        """Of a text that is no conversation: what looks like a thought is text."""
        found = cls(template, vocabulary)
        found.markers = None
        return found

    def about(self) -> str | None:
        """What the model makes of the settings where that is not what they say."""
        if self.think is None and self.budget is None:
            return None
        markers, can_switch = self.markers, self.template.can_switch_thinking
        if markers is None:
            works = can_switch and self.budget is None
            return None if works else "this model is not known to think: what is set of thinking changes nothing"
        if self.think is False and not can_switch and markers.in_template:
            return "the model's template has no switch for thinking: its thought is closed before it begins"
        opening = self.template.reply_opening(self.think)
        if self.think is False and markers.has_parts and not markers.occur_in(opening):
            return "this model always thinks: it is asked to think little"
        if self.think is not None and not can_switch:
            return "the model's template has no switch for thinking: it thinks as it was trained to"
        return None

    def begin(self) -> tuple[list[int], bool]:
        """Tokens that the model is made to begin with, and whether it begins inside its thought."""
        markers = self.markers
        if markers is None:
            return [], False
        opened = opens_thought(markers, self.template.reply_opening(self.think))
        text = ""
        if opened and (self.think is False or self.budget == 0):
            text = markers.forced
        elif self.think is False and not self.template.can_switch_thinking and markers.in_template:
            text = f"{markers.opening}\n{markers.forced}"
        return marker_ids(text, self.vocabulary), opened and not text

    def n_left_out(self) -> int:
        """Tokens at the end of a prompt that the next one leaves out: they open a thought, or close an empty one."""
        if self._n_left_out is None:
            question, answer = Message("user", "question"), Message("assistant", "answer")
            try:
                prompt = self.template.render([question], think=self.think)
                later = self.template.render([question, answer, question], think=self.think)
            except TemplateError:
                prompt, later = [], []
            n_shared = next((i for i, (a, b) in enumerate(zip(prompt, later, strict=False)) if a != b), len(prompt))
            self._n_left_out = len(prompt) - n_shared
        return self._n_left_out

    def cut(self, stream: AnswerStream) -> list[int]:
        """The tokens that end a thought which has reached its budget; none where it has not."""
        is_over = self.budget is not None and stream.in_thought and stream.n_thought >= self.budget
        return marker_ids(self.markers.forced, self.vocabulary) if is_over and self.markers else []


class ThoughtStream:
    """Cuts the tokens of an answer into thought and text, token by token."""

    def __init__(
        self,
        markers: Markers | None,
        vocabulary: Vocabulary,
        *,
        in_thought: bool = False,
        kept: frozenset[int] = frozenset(),
    ) -> None:
        """
        Args:
            in_thought: the prompt opened it.
            kept: tokens that are given as they are where they are no thought's, and not as bytes.
        """
        self._vocabulary, self._markers, self._kept = vocabulary, markers, kept
        self.in_thought = in_thought
        self.n_thought = 0  # tokens since the thought was opened, over all of them
        self.has_crossed = False  # a marker came
        self.last_marker: str | None = None
        self._is_begun = False  # something of this part was settled, so that white space is no edge any more
        self._pending: list[int] = []  # atoms that may become a marker
        self._space = b""  # newlines that may turn out to be an edge
        self._atoms: dict[str, list[int]] = {}
        if markers is not None:
            known = (markers.opening, markers.closing, *markers.answers, *markers.between)
            self._atoms = {marker: _atoms(marker, vocabulary) for marker in known}
        self._tokens = {atom - _TOKEN for atoms in self._atoms.values() for atom in atoms if atom >= _TOKEN}

    @property
    def is_pending(self) -> bool:
        """Whether what came last may become a marker."""
        return bool(self._pending)

    def fork(self) -> ThoughtStream:
        """A stream of its own that goes on from here."""
        forked = copy.copy(self)
        forked._pending = [*self._pending]
        return forked

    def feed(self, token: int) -> list[tuple[bool, bytes | int]]:
        """What is settled now, in order: (whether it is of the thought, bytes or a kept token)."""
        was_in_thought = self.in_thought
        active = self._active()
        if not active and not self._is_edge():
            return [(False, token if token in self._kept else self._vocabulary.piece(token))]
        found = list(self._settle(token))
        self.n_thought += was_in_thought and self.in_thought
        return found

    def end(self) -> list[tuple[bool, bytes | int]]:
        """What was held back, once nothing follows."""
        found = list(self._emit(self._pending))
        if self._space and not self.in_thought and not self.has_crossed:
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
        return [] if self.has_crossed or self._is_begun else [markers.opening]

    def _is_edge(self) -> bool:
        return self.has_crossed and not self._is_begun

    def _settle(self, token: int) -> Iterator[tuple[bool, bytes | int]]:
        is_atom = token in self._tokens or token in self._kept
        atoms = [_TOKEN + token] if is_atom else list(self._vocabulary.piece(token))
        firsts = {self._atoms[name][0] for name in self._active()}
        if not self._pending and firsts.isdisjoint(atoms):  # as nearly always
            yield from self._emit(atoms)
            return
        for atom in atoms:
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
        self.has_crossed, self._is_begun, self._space, self.last_marker = True, False, b"", name
        if name not in markers.between:
            self.in_thought = name == markers.opening

    def _emit(self, atoms: Sequence[int]) -> Iterator[tuple[bool, bytes | int]]:
        start = 0
        for i, atom in enumerate(atoms):
            if atom - _TOKEN in self._kept and not self.in_thought:
                yield from self._emit_text(atoms[start:i])
                space, self._space = b"" if self.has_crossed else self._space, b""
                yield from [(False, space)] if space else []
                yield False, atom - _TOKEN
                self._is_begun, start = True, i + 1
        yield from self._emit_text(atoms[start:])

    def _emit_text(self, atoms: Sequence[int]) -> Iterator[tuple[bool, bytes | int]]:
        if not atoms:
            return
        data = b"".join(self._vocabulary.piece(a - _TOKEN) if a >= _TOKEN else bytes([a]) for a in atoms)
        data, self._space = self._space + data, b""
        if not self._is_begun:
            rest = data.lstrip(_EDGE)
            if not rest and (self.in_thought or self.has_crossed):
                return
            if not rest:  # an opening may follow
                self._space = data
                return
            if self.in_thought or self.has_crossed:
                data = rest
        self._is_begun = True
        if self.in_thought:  # they may be the last
            body = data.rstrip(_EDGE)
            data, self._space = body, data[len(body) :]
        if data:
            yield self.in_thought, data


class AnswerStream:
    """The tokens of an answer, and the thought, the text and the calls of tools that they make.

    Stop strings end the text alone.
    """

    def __init__(
        self,
        markers: Markers | None,
        vocabulary: Vocabulary,
        stops: Sequence[str] = (),
        *,
        in_thought: bool = False,
        calls: CallStream | None = None,
        strips_lead: bool = False,
    ) -> None:
        """
        Args:
            calls: finds calls in the text; None where there is nothing to call.
            strips_lead: a space that the text begins with is the tokenizer's, and left out.
        """
        kept = calls.tokens if calls is not None else frozenset[int]()
        self._parts = ThoughtStream(markers, vocabulary, in_thought=in_thought, kept=kept)
        self._calls = calls
        self._streams = {True: TextStream(), False: TextStream(stops, strips_lead=strips_lead)}
        self._pieces: dict[bool, list[str]] = {True: [], False: []}
        self._n_shown = 0  # characters of the text
        self.tokens: list[int] = []
        self.is_rewritten = False  # tokens differ from what was generated

    @property
    def in_thought(self) -> bool:
        return self._parts.in_thought

    @property
    def n_thought(self) -> int:
        return self._parts.n_thought

    @property
    def has_thought(self) -> bool:
        """Whether tokens of a thought are among the answer's, be they the markers alone."""
        return self._parts.in_thought or self._parts.has_crossed

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text."""
        return self._streams[False].stopped_by

    @property
    def stopped(self) -> bool:
        """A stop string came, and the text ends before it; or all calls that are wanted."""
        return self._streams[False].stopped or (self._calls is not None and self._calls.is_finished)

    @property
    def calls(self) -> Sequence[ToolCall]:
        """Those that are complete."""
        return self._calls.calls if self._calls is not None else ()

    @property
    def text(self) -> str:
        return "".join(self._pieces[False])

    @property
    def thought(self) -> str:
        return "".join(self._pieces[True])

    @property
    def n_shown(self) -> int:
        """Characters of the text that may be shown."""
        return self._n_shown

    @property
    def n_decoded(self) -> int:
        """Characters of the text, with what is held back."""
        return self._n_shown + self._streams[False].n_held

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

    def _shown(self, settled: Sequence[tuple[bool, bytes | int]], *, final: bool = False) -> tuple[str, str]:
        shown = {True: "", False: ""}
        for is_thought, item in settled:
            if self._calls is not None and not is_thought:
                shown[False] += self._streams[False].feed(self._calls.feed(item).encode())
            elif isinstance(item, bytes):
                shown[is_thought] += self._streams[is_thought].feed(item)
        if final and self._calls is not None:
            shown[False] += self._streams[False].feed(self._calls.end().encode())
        for is_thought, stream in self._streams.items():
            if final:
                shown[is_thought] += stream.feed(b"", final=True)
            self._pieces[is_thought].append(shown[is_thought])
        self._n_shown += len(shown[False])
        return shown[True], shown[False]


def _atoms(marker: str, vocabulary: Vocabulary) -> list[int]:
    atoms: list[int] = []
    for text, token in split_markers(marker, vocabulary):
        atoms += text.encode() if token is None else [_TOKEN + token]
    return atoms


def _n_begun(pending: Sequence[int], marker: Sequence[int]) -> int:
    """How many atoms at the end of `pending` begin `marker`."""
    for n in range(min(len(marker) - 1, len(pending)), 0, -1):
        if pending[-n:] == marker[:n]:
            return n
    return 0
