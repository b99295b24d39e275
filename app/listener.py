"""Who is told what goes on: policy prints nothing, and whoever calls it says where its sentences go."""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgellm.export.obtain.download import Progress


class Listener(Protocol):
    """Takes sentences for a person, none of which is part of a result."""

    def note(self, text: str) -> None:
        """What was chosen and why."""
        ...

    def detail(self, text: str) -> None:
        """What only a curious person wants to know."""
        ...

    def warning(self, text: str) -> None:
        """What went otherwise than was asked for."""
        ...

    def progress(self) -> Progress:
        """Who watches the next download."""
        ...

    def working(self, what: str) -> AbstractContextManager[object]:
        """Something that takes seconds goes on inside the block."""
        ...


class Silence:
    """A `Listener` to whom nothing is told."""

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def progress(self) -> Progress:
        from edgellm.export.obtain.download import Unwatched

        return Unwatched()

    def working(self, what: str) -> AbstractContextManager[object]:
        return contextlib.nullcontext()


SILENCE = Silence()


class Log(Silence):
    """A `Listener` that writes to the logger "edgellm", as libraries do: warnings are seen unless somebody objects."""

    def note(self, text: str) -> None:
        logging.getLogger("edgellm").info(text)

    def detail(self, text: str) -> None:
        logging.getLogger("edgellm").debug(text)

    def warning(self, text: str) -> None:
        logging.getLogger("edgellm").warning(text)


LOG = Log()
