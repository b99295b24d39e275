"""What `/set` shows and changes: the rows of the sampling table, and what else a conversation keeps to."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgellm.cli import _errors
from edgellm.cli._output import out
from edgellm.cli._terminal import dim
from edgellm.cli._texts import quoted, split_texts, unescaped
from edgellm.memory.sampling_parameters import PARAMETERS, Parameter

if TYPE_CHECKING:
    from edgellm.runtime.conversation import ChatSession

_NONE = "none"
_THINK = {"on": True, "off": False, "auto": None}


class Conversation(Protocol):
    """What the settings are of."""

    session: ChatSession
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Setting:
    """One name of `/set`. `change` raises ValueError, KeyError or OverflowError where a text is no value for it."""

    value: Callable[[Conversation], Any]  # None is shown as "none"
    change: Callable[[Conversation, str], None]


def show_or_change(talk: Conversation, text: str) -> None:
    """`/set`, `/set NAME` and `/set NAME VALUE`."""
    name, _, value = text.partition(" ")
    name, value = name.lower().replace("-", "_"), value.strip()
    name = _ALIASES.get(name, name)
    if name and name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}"
        out.error(f"there is no setting {name}: {hint}")
        return
    if value:
        try:
            SETTINGS[name].change(talk, value)
        except (ValueError, OverflowError, KeyError) as error:
            why = _errors.sentence(error).removeprefix(f"{name} ") if _errors.exit_code(error) else ""
            out.error(f"{name} cannot be {value!r}{why and f': {why}'}")
            return
        if name.startswith("think") and (note := talk.session.thinking.about()):
            out.warning(note)
    for shown in [name] if name else SETTINGS:
        current = SETTINGS[shown].value(talk)
        out.text(f"  {shown:<16}{_NONE if current is None else current}")


def _sampling(row: Parameter) -> Setting:
    def change(talk: Conversation, text: str) -> None:
        talk.session.sampling = dataclasses.replace(talk.session.sampling, **{row.name: row.read(text)})

    return Setting(lambda talk: getattr(talk.session.sampling, row.name), change)


def _set_max_tokens(talk: Conversation, text: str) -> None:
    talk.max_tokens = _count(text, least=1)


def _draft_tokens(talk: Conversation) -> int:
    session = talk.session
    return session.engine.n_draft if session.n_draft is None else session.n_draft


def _set_draft_tokens(talk: Conversation, text: str) -> None:
    n_draft, most = _at_least(int(text), 0), talk.session.engine.n_draft
    talk.session.n_draft = min(n_draft, most)
    if n_draft > most:
        out.note(dim(f"(at most {most} here: `edgellm chat --draft-tokens N` makes room for more)"))


def _set_stop(talk: Conversation, text: str) -> None:
    talk.session.stop = () if text.casefold() == _NONE else tuple(map(unescaped, split_texts(text)))


def _shown_think(talk: Conversation) -> str:
    return next(word for word, think in _THINK.items() if think is talk.session.thinking.think)


def _set_think(talk: Conversation, text: str) -> None:
    talk.session.thinking.think = _THINK[text.lower()]


def _set_think_budget(talk: Conversation, text: str) -> None:
    talk.session.thinking.budget = _count(text, least=0)


def _count(text: str, *, least: int) -> int | None:
    return None if text.casefold() == _NONE else _at_least(int(text), least)


def _at_least(value: int, least: int) -> int:
    if value < least:
        raise ValueError(value)
    return value


SETTINGS: dict[str, Setting] = {name: _sampling(row) for name, row in PARAMETERS.items()} | {
    "max_tokens": Setting(lambda talk: talk.max_tokens, _set_max_tokens),
    "draft_tokens": Setting(_draft_tokens, _set_draft_tokens),
    "stop": Setting(lambda talk: quoted(talk.session.stop) or None, _set_stop),
    "think": Setting(_shown_think, _set_think),
    "think_budget": Setting(lambda talk: talk.session.thinking.budget, _set_think_budget),
}
_ALIASES = {row.option.replace("-", "_"): name for name, row in PARAMETERS.items()}
