"""The calls in an answer, cut out of its text as it comes.

Text in front of a call goes out at once; what may be the beginning of one is held back. A call that is none after all
is text. The answer is read letter by letter, a marker that is a token counting as one, so how it was cut into pieces
changes nothing.
"""

from __future__ import annotations

import codecs
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgellm.runtime.text.tool_readers import (
    ArgumentsReader,
    CodeReader,
    FunctionReader,
    JsonReader,
    Reader,
    TagReader,
    header_patterns,
)
from edgellm.runtime.text.tools import CallFormat, Tool, ToolCall
from edgellm.runtime.text.vocabulary import Vocabulary

ID_LETTERS = 9  # of a call's id: Mistral's templates take no other number
_FENCES = ("```json\n", "```tool_call\n", "```\n")
_CODE_FENCE = "```tool_code\n"
_SPACE_BETWEEN = re.compile(r'("[^"]*"?)|[ \t\r\n]+')  # texts of JSON, and what means nothing
_MARKER = 0xDC00  # lone surrogates are in no text, so one can stand for a marker that is a token


@dataclass(frozen=True, slots=True)
class _Opener:
    text: str
    read: Callable[[], Reader]
    closers: tuple[str, ...] = ()  # what may stand behind a call
    at_line_start: bool = False
    is_read: bool = False  # the text is part of the call itself


class CallStream:
    """Cuts what a model says into text and calls."""

    def __init__(
        self,
        form: CallFormat,
        tools: Sequence[Tool],
        vocabulary: Vocabulary,
        *,
        only_first: bool = False,
        is_held: bool = False,
    ) -> None:
        """
        Args:
            only_first: nothing behind the first call counts.
            is_held: the answer is held to `strict_calls`, and no calls count but those that it knows of.
        """
        self.calls: list[ToolCall] = []
        self.tokens = frozenset(form.markers.values())  # to be fed as they are
        self._only_first, self._tools, self._vocabulary = only_first, tools, vocabulary
        self._letters = {token: chr(_MARKER + i) for i, token in enumerate(sorted(self.tokens))}
        self._spelled = {ord(self._letters[token]): _text_of(token, vocabulary) for token in self.tokens}
        self._marks = {marker: self._letters[token] for marker, token in form.markers.items()}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._known = frozenset(tool.name for tool in tools)
        self._openers = self._openers_of(form)
        if is_held:
            self._openers = self._openers[:1]  # the marker
        self._heads = (
            []
            if form.name in ("harmony", "mistral")
            else [shape for name in sorted(self._known) for shape in head_shapes(name)]
        )
        self._held = ""  # white space, and what may begin a call
        self._at_line_start = True
        self._has_text = False
        self._after: tuple[str, ...] = ()  # what may follow the call that was just read
        self._reader: Reader | None = None
        self._closers: tuple[str, ...] = ()
        self._raw: list[str] = []  # the call that is being read, should it be none
        self._shown: list[str] = []

    @property
    def is_finished(self) -> bool:
        """Nothing that follows counts."""
        return self._only_first and bool(self.calls)

    def feed(self, item: bytes | int) -> str:
        """The text that bytes, or a token of `tokens`, settle; calls are added to `calls`."""
        text = self._letters[item] if isinstance(item, int) else self._decoder.decode(item)
        for char in text:
            self._step(char)
        return self._take_shown()

    def end(self) -> str:
        """The text that was held back, once nothing follows."""
        if self._reader is not None and not self.is_finished:
            reader, n_before = self._reader, len(self._reader.calls)
            if reader.end() == "done":
                self._add(reader.calls[n_before:])
            else:
                self._show("".join(self._raw))
        rest = self._held.strip()
        if rest and any(closer.startswith(rest) for closer in self._after):
            rest = ""
        if rest or not self.calls:
            self._show(self._held)
        self._reader, self._held = None, ""
        return self._take_shown()

    def _mark(self, marker: str) -> str:
        """A marker as it stands in what is read."""
        return self._marks.get(marker, marker)

    def _openers_of(self, form: CallFormat) -> list[_Opener]:
        mark, tools, known = self._mark, self._tools, self._known
        if form.name == "harmony":
            header, ends = header_patterns(mark)["harmony"], (mark("<|message|>"), "{")
            closers = (mark("<|call|>"), mark("<|end|>"))

            def read() -> Reader:
                return ArgumentsReader(header, ends=ends)

            return [
                _Opener(mark("<|channel|>"), read, closers, is_read=True),
                _Opener(f"{mark('<|start|>')}assistant to=", read, closers, is_read=True),
                _Opener("to=functions.", read, closers, at_line_start=True, is_read=True),
            ]
        if form.name == "mistral":
            header = header_patterns(mark)["mistral"]
            return [_Opener(mark("[TOOL_CALLS]"), lambda: ArgumentsReader(header, ends=("{",), json_too=True))]
        code = _Opener(_CODE_FENCE, lambda: CodeReader(known), at_line_start=True)
        if form.name == "llama3":
            return [_Opener(mark("<|python_tag|>"), JsonReader, (";", ",")), code]
        closing = (mark("</tool_call>"),)
        tag = _Opener(mark("<tool_call>"), lambda: TagReader(tools), closing)
        function = _Opener("<function=", lambda: FunctionReader(tools), closing, at_line_start=True, is_read=True)
        return [tag, code, *([function] if form.name == "tagged" else [])]

    def _step(self, char: str) -> None:
        if self.is_finished:
            return
        if self._reader is not None:
            self._read(self._reader, char)
            return
        self._held += char
        while self._held and self._reader is None:
            words = self._held.lstrip()
            if words in self._after:
                self._held, self._after = "", ()
                return
            found = self._look(words)
            if found is True:
                return
            if isinstance(found, _Opener):
                self._begin(found, words)
                return
            self._show(self._held[: len(self._held) - len(words) + 1])
            self._held = words[1:]
            self._after = ()

    def _look(self, words: str) -> _Opener | bool:
        """The opener that `words` are, or whether they may still become one."""
        if not words:
            return True
        is_begun = any(closer.startswith(words) and closer != words for closer in self._after)
        at_line_start = self._at_line_start or "\n" in self._held[: len(self._held) - len(words)]
        for opener in self._openers:
            if at_line_start or not opener.at_line_start:
                if words == opener.text:
                    return opener
                is_begun = is_begun or opener.text.startswith(words)
        bare = self._look_at_json(words) if at_line_start else False
        return bare if isinstance(bare, _Opener) else is_begun or bare

    def _look_at_json(self, words: str) -> _Opener | bool:
        """The same for an object that names a tool, fenced or not."""
        fence = ""
        if words.startswith("`"):
            if any(other.startswith(words) for other in _FENCES):
                return True
            fence = next((fence for fence in _FENCES if words.startswith(fence)), "")
            if not fence:
                return False
        head = _SPACE_BETWEEN.sub(r"\1", words[len(fence) :]).removeprefix("[")
        if any(known.startswith(head) for known in self._heads):
            is_whole = any(known == head for known in self._heads)
            closers = ("```",) if fence else (";", ",")
            opener = _Opener(fence, lambda: JsonReader(self._known), closers)
            return opener if is_whole else bool(head or fence or words.startswith("["))
        return False

    def _begin(self, opener: _Opener, words: str) -> None:
        space = self._held[: len(self._held) - len(words)]
        self._held, self._after = "", ()
        self._reader, self._closers = opener.read(), opener.closers
        skipped = 0 if opener.is_read else len(opener.text)
        self._raw = [space, words[:skipped]]
        for char in words[skipped:]:
            self._step(char)

    def _read(self, reader: Reader, char: str) -> None:
        self._raw.append(char)
        n_before = len(reader.calls)
        progress = reader.step(char)
        if len(reader.calls) > n_before:
            self._add(reader.calls[n_before:])
            self._raw = []
        if progress == "done":
            self._reader, self._after = None, self._closers
        elif progress == "failed":
            self._reader = None
            self._show("".join(self._raw[:-1]))
            self._step(char)  # it may begin another

    def _add(self, calls: Sequence[ToolCall]) -> None:
        for call in calls[: 1 if self._only_first else None]:
            self.calls.append(replace(call, id=secrets.token_hex(ID_LETTERS)[:ID_LETTERS]))
        self._at_line_start = True

    def _show(self, text: str) -> None:
        if self.calls and not self._has_text:  # what stands between calls alone
            text = text.lstrip()
        if text:
            self._shown.append(text)
            self._has_text, self._at_line_start = True, False

    def _take_shown(self) -> str:
        shown = "".join(self._shown).translate(self._spelled)
        self._shown.clear()
        return shown


def head_shapes(name: str) -> list[str]:
    """How objects begin that call a tool of that name, without white space."""
    kind = '{{"type":"function",'
    shapes = ['{{"name":"{}"', '{{"function":"{}"', '{{"function":{{"name":"{}"']
    shapes += [kind + shape[2:] for shape in shapes]
    return [shape.format(name) for shape in shapes]


def _text_of(token: int, vocabulary: Vocabulary) -> str:
    return vocabulary.piece(token).decode("utf-8", "replace")
