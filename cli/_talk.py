"""The conversation in a terminal: messages, commands that begin with a slash, and a line of figures after an answer."""

from __future__ import annotations

import dataclasses
import difflib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli import _errors
from edgellm.cli._answers import Plain
from edgellm.cli._output import out
from edgellm.cli._settings import SETTINGS, show_or_change
from edgellm.cli._status import cost_rows, forgotten_line, incomplete_line, n_messages, status_line, unanswered_line
from edgellm.cli._terminal import FENCE, LineEditor, dim, interrupts, leaving, printable, waiting

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile
    from edgellm.runtime.answer import Answer
    from edgellm.runtime.conversation import ChatSession

_COMMANDS = {  # command -> (its arguments, what it does)
    "/help": ("", "show this list"),
    "/regen": ("", "answer the last question again"),
    "/clear": ("", "forget the conversation, keep the system prompt"),
    "/system": ("[TEXT]", 'show or set the system prompt; "" removes it'),
    "/set": ("[NAME VALUE]", "show or change settings"),
    "/stats": ("", "show what the last answer cost"),
    "/save": ("FILE", "write the conversation to a file"),
    "/load": ("FILE", "go on with a conversation from a file"),
    "/exit": ("", "leave (also /quit, /bye, Ctrl-D)"),
}
Around = Callable[[], AbstractContextManager[object]]
_ALIASES = {"/quit": "/exit", "/bye": "/exit", "/?": "/help"}
_TAKEN_BACK = "(stopped while reading: the question is taken back, arrow up brings it again)"


@dataclasses.dataclass(slots=True)
class Talk:
    """One conversation with its settings."""

    session: ChatSession
    target: ModelFile
    draft: ModelFile | None
    max_tokens: int | None = None
    kept: Path | None = None  # where the conversation is kept at leaving, for `--resume`
    around: Around = nullcontext  # entered for each answer
    reopen: Callable[[], None] | None = None  # loads the session's models anew, once a worker that held layers is gone
    answers: list[Answer] = dataclasses.field(default_factory=list)

    def run(self, history: Path) -> None:
        """Read and answer until the user leaves; the conversation is kept, whatever ends it."""
        # Between an answer and the editor, which have their own, Ctrl-C does nothing.
        with interrupts(threading.Event()), leaving(self._leave):
            self._run(history)

    def _run(self, history: Path) -> None:
        editor = LineEditor(
            history,
            {name: about for name, (_, about) in _COMMANDS.items()},
            {"/set": list(SETTINGS), "/save": Path(), "/load": Path()},
        )
        is_asked = False  # Ctrl-C came on an empty line: another one leaves
        while True:
            try:
                text = editor.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if is_asked:
                    return
                is_asked = True
                out.note(dim("(Ctrl-C once more, or Ctrl-D, leaves)"))
                continue
            is_asked = False
            if editor.was_interrupted:
                out.note(dim(_TAKEN_BACK))
            elif not self.do(text):
                return

    def do(self, text: str) -> bool:
        """Do what a message or command says; False to leave. What the user can mend is told, and the talk goes on."""
        try:
            return self._do(text)
        except Exception as error:
            if _errors.exit_code(error) is None:
                raise
            out.error(_errors.sentence(error))
            return True

    def _do(self, text: str) -> bool:
        if not text.strip():
            return True
        # "/usr/bin is what?" is a question; a command is one word of letters.
        if not re.match(r"/[A-Za-z?]+(\s|$)", text):
            question = text.encode("utf-8", "replace").decode()  # a terminal may send bytes that are no text
            self._answer(partial(self.session.reply, question))
            return True
        word, *following = text.split(None, 1)
        rest = following[0].strip() if following else ""
        command = _ALIASES.get(word.lower(), word.lower())
        if command == "/exit":
            return False
        if command not in _COMMANDS:
            setting = f"/set {command[1:]}" if command[1:] in SETTINGS else ""
            near = [setting] if setting else difflib.get_close_matches(command, [*_COMMANDS, *_ALIASES], 1, 0.6)
            hint = f"did you mean {near[0]}? " if near else ""
            out.error(f"there is no command {word}: {hint}/help lists them")
        elif _COMMANDS[command][0] == "FILE" and not rest:
            out.error(f"{command} needs the name of a file")
        else:
            getattr(self, f"_{command[1:]}")(rest)
        return True

    def _answer(self, say: Callable[..., Iterator[str]]) -> None:
        """Show an answer as it comes, then what it cost. `say`: a session's `reply` or `regenerate`."""
        if self.reopen is not None and self.session.engine.model.lost_layers:
            self.reopen()
        with self.around():
            self._show(say)

    def _show(self, say: Callable[..., Iterator[str]]) -> None:
        shown, n_forgotten, cancel = Plain(), self.session.n_forgotten, threading.Event()
        with interrupts(cancel), waiting("…") as erase:

            def on_thought(piece: str) -> None:
                erase()
                shown.thought(piece)

            try:
                for piece in say(max_tokens=self.max_tokens, cancel=cancel, on_thought=on_thought):
                    erase()
                    shown.text(piece)
            finally:
                erase()
                shown.close()
        answer = self.session.last
        assert answer is not None
        if not answer.stats.n_rounds:
            out.note(dim(_TAKEN_BACK))
            return
        self.answers.append(answer)
        out.note(dim(status_line(answer, self.session)))
        if answer.n_forgotten > n_forgotten:
            out.note(dim(forgotten_line(answer)))
        out.warnings(self.session.engine.warnings)
        if answer.finish_reason != "interrupted" and (line := unanswered_line(answer)):
            out.note(dim(line))
        if self.session.constraint is not None and (line := incomplete_line(answer)):
            out.note(dim(line))

    def _help(self, _: str) -> None:
        for name, (arguments, about) in _COMMANDS.items():
            out.text(f"  {name + ' ' + arguments:<22}{about}")
        out.text("")
        out.text(f"  {'Alt-Enter':<22}begin a new line; pasted lines stay together")
        out.text(f"  {FENCE:<22}begins a message of several lines, and ends it")
        out.text(f"  {'Ctrl-C':<22}stop the answer, keep the conversation")

    def _regen(self, _: str) -> None:
        if not self.session.messages:
            out.error("there is no question yet that could be answered again")
            return
        if self.session.sampling.greedy:
            out.note(dim("(temperature is 0, which gives the same answer: /set temperature 0.8 gives others)"))
        self._answer(self.session.regenerate)

    def _clear(self, _: str) -> None:
        self.session.clear()
        out.note(dim("(the conversation is forgotten)"))

    def _system(self, text: str) -> None:
        if text:
            self.session.system = None if text in ('""', "''") else text
        out.note(dim(f"(system prompt: {self.session.system or 'none'})"))

    def _save(self, name: str) -> None:
        from edgellm.app import conversations

        session, path = self.session, Path(name).expanduser()
        conversations.save(
            path,
            session.messages,
            system=session.system,
            target=self.target,
            draft=self.draft,
            vocabulary=session.engine.model.vocabulary,
        )
        out.note(dim(f"({n_messages(len(session.messages))} saved in {path})"))

    def _load(self, name: str) -> None:
        path = Path(name).expanduser()
        self._take_up(path, str(path))

    def resume(self) -> None:
        """Go on with the conversation that was left last; a system prompt that was given now counts.

        Raises:
            BadConversation: there is none, or its file is damaged.
        """
        assert self.kept is not None
        self._take_up(self.kept, "the conversation left last", keeps_system=self.session.system is not None)

    def _take_up(self, path: Path, what: str, *, keeps_system: bool = False) -> None:
        from edgellm.app import conversations

        session = self.session
        loaded = conversations.read(path, session.engine.model.vocabulary)
        session.clear()
        if not keeps_system:
            session.system = loaded.system
        session.messages.extend(loaded.messages)
        by = "" if loaded.target == self.target.name else f", which {loaded.target[:80]} answered"
        out.note(dim(printable(f"({n_messages(len(session.messages))} from {what}{by}: the conversation goes on)")))

    def _leave(self) -> None:
        if self.keep():
            out.note(dim("(`edgellm chat --resume` goes on with this conversation)"))

    def keep(self) -> bool:
        """Keep what was said for `resume`. A disk that refuses is a warning: the conversation ends all the same."""
        from edgellm.app import conversations

        if self.kept is None or not self.session.messages:
            return False
        try:
            conversations.keep(
                self.kept,
                self.session.messages,
                system=self.session.system,
                target=self.target,
                draft=self.draft,
                vocabulary=self.session.engine.model.vocabulary,
            )
        except OSError as error:
            out.warning(f"this conversation could not be kept for --resume: {_errors.sentence(error)}")
            return False
        return True

    def _stats(self, _: str) -> None:
        if not self.answers:
            out.note(dim("(no answer yet)"))
            return
        for label, value in cost_rows(self.answers):
            out.text(f"  {label:<10}{value}")

    def _set(self, text: str) -> None:
        show_or_change(self, text)
