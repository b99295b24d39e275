"""The terminal: a line editor, text that cannot garble the screen, keys and signals while an answer streams."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from edgellm.cli._output import wants_colour

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

FENCE = '"""'  # begins and ends a message of several lines
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Model output for a terminal: what would move the cursor or change its state is shown as a symbol instead."""
    return _CONTROL.sub(lambda match: _symbol(match.group()), text)


def _symbol(character: str) -> str:
    code = ord(character)
    return "" if character == "\r" else chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


class WordWrap:
    """Prose broken between words as it streams; code between fences is left as it is, for copying.

    A word is shown once it is whole, so that nothing has to be moved on the screen.
    """

    def __init__(self, n_columns: Callable[[], int]) -> None:
        """`n_columns`: asked again and again, for the window may change its size."""
        self._n_columns = n_columns
        self._column, self._space, self._word = 0, "", ""
        self._line = ""  # its beginning, to tell fences
        self._in_code = False

    def feed(self, text: str) -> str:
        """What may be written now."""
        return "".join(map(self._character, text))

    def end(self) -> str:
        """What was held back."""
        return self._flush()

    def _character(self, character: str) -> str:
        if character == "\n":
            shown = self._flush() + "\n"
            self._in_code ^= self._line.lstrip().startswith("```")
            self._column, self._line = 0, ""
            return shown
        if len(self._line) < 16:
            self._line += character
        if self._in_code:
            return character
        if character.isspace():
            shown = self._flush() if self._word else ""
            self._space += character
            return shown
        wide = _width(character) > 1  # scripts without spaces may break anywhere
        shown = self._flush() if wide and self._word else ""
        self._word += character
        return shown + self._flush() if wide else shown

    def _flush(self) -> str:
        space, word, n_columns = self._space, self._word, max(1, self._n_columns())
        self._space = self._word = ""
        n_before, n_word = self._column + _width(space), _width(word)
        if word and self._column and n_before + n_word > n_columns >= n_word:
            self._column = n_word
            return "\n" + word
        self._column = (n_before + n_word - 1) % n_columns + 1 if n_before + n_word else 0
        return space + word


def _width(text: str) -> int:
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(text)


def dim(text: str) -> str:
    """Text for stderr that steps back, where the terminal can show that."""
    return f"\033[2m{text}\033[0m" if wants_colour(sys.stderr) else text


@contextlib.contextmanager
def waiting(text: str) -> Iterator[Callable[[], None]]:
    """Show a short text on stderr, if that is a terminal, until the yielded function is called or the block ends."""
    shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def erase() -> None:
        nonlocal shown
        if shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        shown = False

    if shown:
        sys.stderr.write(dim(text))
        sys.stderr.flush()
    try:
        yield erase
    finally:
        erase()


@contextlib.contextmanager
def silent_keys() -> Iterator[None]:
    """Keys pressed meanwhile are not echoed into the answer; they wait for the next line. Ctrl-C still works."""
    try:
        import termios
    except ImportError:  # Windows: the console echoes nothing that is not read
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = list(before)
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    silent[3] |= termios.NOFLSH  # Ctrl-C ends an answer and leaves what was typed ahead
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the window is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextlib.contextmanager
def interrupts(stop_asked: threading.Event) -> Iterator[None]:
    """Ctrl-C sets `stop_asked`, so that work ends where its state is true; pressing it again changes nothing."""

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        stop_asked.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def leaving(last: Callable[[], None]) -> Iterator[None]:
    """Do `last` however the block ends, also by `kill` or a window that is closed.

    A closed window makes several signals and an end of input: those behind the first end change nothing.
    """
    is_inside = True

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal is_inside
        if is_inside:
            is_inside = False
            raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGHUP", "SIGTERM") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # `nohup` has them ignored
    for number in heard:
        signal.signal(number, on_signal)
    try:
        try:
            yield
        finally:
            is_inside = False
    finally:
        last()
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


class LineEditor:
    """Reads messages: history, several lines (fenced, pasted or by Alt-Enter), completion of commands by Tab."""

    def __init__(self, history: Path, commands: Mapping[str, str], arguments: Mapping[str, Sequence[str] | Path]):
        """
        Args:
            history: a file that only its owner may read.
            commands: command -> its help, completed at the beginning of a line.
            arguments: command -> the words that may follow it; a Path: any file.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.application import get_app
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.styles import Style

        self.was_interrupted = False
        self._interrupted = threading.Event()  # while the prompt starts or ends, when the library hears no Ctrl-C
        self._session: PromptSession[str] = PromptSession(
            message=[("class:prompt", ">>> ")],
            prompt_continuation=lambda _, __, n_wraps: [("class:continuation", "    " if n_wraps else "... ")],
            style=Style.from_dict({"prompt": "bold ansigreen", "continuation": "ansigreen"}),
            history=_history(history),
            completer=_completer(commands, arguments),
            complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
            reserve_space_for_menu=6,
            multiline=True,
            key_bindings=_keys(lambda: self._interrupted.set()),
        )

    def read(self) -> str:
        """The next message, without its fence.

        Raises:
            EOFError: Ctrl-D on an empty line.
            KeyboardInterrupt: Ctrl-C on an empty line; elsewhere it throws away what was typed.

        Ctrl-C right behind the message, read before anybody could answer, sets `was_interrupted`.
        """
        while True:
            try:
                text = self._prompt()
                break
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    raise
        self.was_interrupted = self._take_interrupt() or self._interrupted.is_set()
        if text.startswith(FENCE):
            return text.removeprefix(FENCE).rstrip().removesuffix(FENCE).strip("\n")
        return text

    def _prompt(self) -> str:
        """The library's prompt, which is not made for a Ctrl-C while it starts: that one waits until it stands."""
        from prompt_toolkit.application import get_app

        self._interrupted.clear()

        def leave_if_interrupted() -> None:
            if self._interrupted.is_set():
                get_app().exit(exception=KeyboardInterrupt, style="class:aborting")

        with interrupts(self._interrupted):
            return self._session.prompt(pre_run=leave_if_interrupted)

    def _take_interrupt(self) -> bool:
        """Whether Ctrl-C is among the keys read ahead; those behind it stay."""
        from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
        from prompt_toolkit.keys import Keys

        ahead = get_typeahead(self._session.input)
        n_taken = max((i for i, key in enumerate(ahead, 1) if key.key == Keys.ControlC), default=0)
        store_typeahead(self._session.input, ahead[n_taken:])
        return n_taken > 0


def _is_open(text: str) -> bool:
    """A fence that is not closed yet."""
    return text.startswith(FENCE) and not (len(text.rstrip()) >= 2 * len(FENCE) and text.rstrip().endswith(FENCE))


def _keys(on_late_interrupt: Callable[[], None]) -> KeyBindings:
    """`on_late_interrupt`: Ctrl-C came as a signal when the message had just been accepted."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("<sigint>")
    def _signal(event: KeyPressEvent) -> None:
        if event.app.is_done:  # a second exit() would raise inside the loop
            on_late_interrupt()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # the choice is taken; the next Enter sends
        elif _is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer(commands: Mapping[str, str], arguments: Mapping[str, Sequence[str] | Path]) -> Completer:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class Commands(Completer):
        def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            if not text.startswith("/") or "\n" in text:
                return
            command, space, rest = text.partition(" ")
            following = arguments.get(command, ())
            if not space:
                for name, about in commands.items():
                    if name.startswith(text):
                        yield Completion(name, -len(text), display_meta=about)
            elif isinstance(following, Path):
                yield from PathCompleter(expanduser=True).get_completions(Document(rest), event)
            else:
                for word in following:
                    if word.startswith(rest) and word != rest:
                        yield Completion(word, -len(rest))

    return Commands()


def _history(path: Path) -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Remembered(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk is no reason to end a conversation
                super().store_string(string.encode("utf-8", "replace").decode())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return Remembered(path)
