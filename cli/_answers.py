"""An answer as it is shown: its text on stdout, its thought dim on stderr; or JSON."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from edgellm.app.adapters import adapters_json
from edgellm.app.drafter_adapters import adapter_json
from edgellm.cli._output import out, wants_colour
from edgellm.cli._terminal import WordWrap, printable

if TYPE_CHECKING:
    from edgellm.app.loading import Pair
    from edgellm.runtime.answer import Answer


class AnswerText:
    """An answer on stdout: wrapped and without control characters on a terminal, as it is elsewhere.

    It ends with one newline, however many the model wrote.
    """

    def __init__(self) -> None:
        self._wrap = WordWrap(lambda: shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
        self._newlines = ""  # held back until something follows
        self._is_empty = True

    def write(self, piece: str) -> None:
        text = self._newlines + (self._wrap.feed(printable(piece)) if self._wrap else piece)
        shown = text.rstrip("\n")
        self._newlines = text[len(shown) :]
        if shown:
            self._is_empty = False
            out.text(shown, end="")

    def end(self) -> None:
        if self._wrap and (rest := self._wrap.end().rstrip()):
            out.text(self._newlines + rest, end="")
            self._is_empty = False
        if not self._is_empty or not self._wrap:
            out.text("")


class ThoughtText:
    """A thought on stderr, dim and an empty line apart from what follows; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._wrap = WordWrap(_columns_of_stderr)
        self._is_shown = sys.stderr.isatty() and not out.quiet
        self._is_dim = wants_colour(sys.stderr)
        self._is_open = False

    def write(self, piece: str) -> None:
        if not self._is_shown or not piece:
            return
        if not self._is_open:
            self._put("" if self._is_dim else "[thought]\n")
            self._is_open = True
        self._put(self._wrap.feed(printable(piece)))

    def end(self) -> None:
        """Called before anything else is shown."""
        if self._is_open:
            self._put(self._wrap.end().rstrip() + ("" if self._is_dim else "\n[end of thought]"))
            sys.stderr.write("\n\n")
            sys.stderr.flush()
        self._is_open = False

    def _put(self, text: str) -> None:
        # Each piece by itself, so that whatever ends the program leaves no dim terminal behind.
        sys.stderr.write(f"\033[2m{text}\033[0m" if self._is_dim and text else text)
        sys.stderr.flush()


def _columns_of_stderr() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 80


class Plain:
    """The answer's text as it comes."""

    def __init__(self) -> None:
        self._text, self._thought = AnswerText(), ThoughtText()

    def start(self) -> None:
        pass

    def thought(self, piece: str) -> None:
        self._thought.write(piece)

    def text(self, piece: str) -> None:
        self._thought.end()
        self._text.write(piece)

    def close(self) -> None:
        """Leave the terminal at the beginning of a line."""
        self._thought.end()
        self._text.end()

    def end(self, answer: Answer) -> None:
        self.close()


class Json(Plain):
    """One object at the end."""

    def __init__(self, pair: Pair) -> None:
        self._models: dict[str, Any] = {
            "target": pair.target.reference,
            "draft": pair.draft.reference if pair.draft else None,
            "draft_adapter": adapter_json(pair.adapter),
            "loras": adapters_json(pair.options.loras),
        }

    def thought(self, piece: str) -> None:
        pass

    def text(self, piece: str) -> None:
        pass

    def end(self, answer: Answer) -> None:
        out.json(self._result(answer))

    def _result(self, answer: Answer) -> dict[str, Any]:
        result = answer.to_json()
        stats = result.pop("stats")  # the longest part comes last
        return result | self._models | {"stats": stats}


class JsonLines(Json):
    """An event for the start, for each piece of thought and of text, and for the end, which repeats the whole."""

    def start(self) -> None:
        out.jsonl({"event": "start", **self._models})

    def thought(self, piece: str) -> None:
        out.jsonl({"event": "reasoning", "text": piece})

    def text(self, piece: str) -> None:
        out.jsonl({"event": "text", "text": piece})

    def end(self, answer: Answer) -> None:
        out.jsonl({"event": "end", **self._result(answer)})
