"""What a server stands on: a model that answers several people."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from edgellm.memory.errors import USAGE, EdgellmError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgellm.app.listener import Listener
    from edgellm.app.loading import Pair
    from edgellm.runtime.answer import Answer, Piece
    from edgellm.runtime.engine import Engine
    from edgellm.runtime.generation import Generation
    from edgellm.runtime.parallel.engine import ParallelEngine
    from edgellm.runtime.request import Request
    from edgellm.runtime.text.template import ChatTemplate
    from edgellm.runtime.text.vocabulary import Vocabulary


class CannotServe(EdgellmError):
    """Something is missing, or was asked for that would not be safe; the message says what to do."""

    exit_code = USAGE


def check_installed() -> None:
    """Raises CannotServe: what a server is made of is missing."""
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise CannotServe(f"a server needs {name}, which is missing: pip install 'edgellm[serve]'")


class Writing(Protocol):
    """An answer that is being written; one thread iterates it."""

    def prepare(self) -> int:
        """Write the prompt and return its tokens; may run beside other answers, before `pieces`.

        Raises:
            PromptTooLong: it does not fit.
            TemplateError: the model's template refuses the conversation.
        """
        ...

    def pieces(self) -> Generator[Piece, None, None]:
        """Text and thought as they come. Closing it ends the answer with what was said."""
        ...

    @property
    def answer(self) -> Answer:
        """The whole, once the last piece was given or `pieces` was closed."""
        ...


class Served(Protocol):
    """A loaded model that answers `n_parallel` requests at once."""

    @property
    def name(self) -> str: ...

    @property
    def n_ctx(self) -> int: ...  # tokens of a prompt and its answer

    @property
    def n_parallel(self) -> int: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def template(self) -> ChatTemplate: ...

    @property
    def warnings(self) -> list[str]: ...  # what people must know of it; grows while it answers

    def generate(self, request: Request, *, cancel: threading.Event) -> Writing:
        """An answer, of which nothing is computed yet; `cancel` ends it. Raises BadRequest."""
        ...

    def embed(self, texts: Sequence[Sequence[int]], cancel: threading.Event) -> NDArray[np.float32]:
        """A vector of unit length for each text's tokens, (n_texts, n_embd); the thread waits for its turn.

        Raises:
            CannotEmbed: the model gives none.
            PromptTooLong: a text is longer than the context.
            Interrupted: `cancel` was set.
        """
        ...


class SingleServed:
    """An engine of one conversation: whoever else asks waits for it."""

    n_parallel = 1

    def __init__(self, engine: Engine, name: str) -> None:
        self.name, self._engine, self._lock = name, engine, threading.Lock()
        self.n_ctx = engine.backend.n_ctx
        self.vocabulary, self.template = engine.model.vocabulary, engine.template
        self.warnings = engine.warnings

    def generate(self, request: Request, *, cancel: threading.Event) -> Writing:
        from edgellm.runtime.generation import Generation

        return _InTurn(Generation(self._engine, request, cancel=cancel), self._lock)

    def wait(self) -> None:
        """Until the answer that is being written is whole."""
        with self._lock:
            pass

    def embed(self, texts: Sequence[Sequence[int]], cancel: threading.Event) -> NDArray[np.float32]:
        from edgellm.runtime.embedding import embed_all

        return embed_all(texts, lambda: _held(self._engine, self._lock), cancel)


class ParallelServed:
    """An engine of several conversations."""

    def __init__(self, engine: ParallelEngine, name: str) -> None:
        self.name, self._engine = name, engine
        self.n_ctx, self.n_parallel = engine.n_ctx, engine.n_parallel
        self.vocabulary, self.template = engine.first.model.vocabulary, engine.first.template
        self.warnings = engine.first.warnings

    def generate(self, request: Request, *, cancel: threading.Event) -> Writing:
        return self._engine.generate(request, cancel=cancel)

    def embed(self, texts: Sequence[Sequence[int]], cancel: threading.Event) -> NDArray[np.float32]:
        from edgellm.runtime.embedding import embed_all

        return embed_all(texts, lambda: self._engine.seat(cancel), cancel)


@contextmanager
def _held(engine: Engine, lock: threading.Lock) -> Iterator[Engine]:
    with lock:
        yield engine


class _InTurn:
    """An answer that is written while nobody else's is."""

    def __init__(self, generation: Generation, lock: threading.Lock) -> None:
        self._generation, self._lock = generation, lock
        self.prepare = generation.prepare

    def pieces(self) -> Generator[Piece, None, None]:
        with self._lock:
            yield from self._generation.pieces()

    @property
    def answer(self) -> Answer:
        return self._generation.answer


@contextmanager
def open_served(pair: Pair, listener: Listener) -> Iterator[Served]:
    """A pair, loaded for as many conversations as its options say."""
    if pair.options.n_parallel > 1 or pair.options.prefixes is not None:
        with pair.open_parallel(listener) as several:
            yield ParallelServed(several, pair.target.name)
    else:
        with pair.open(listener) as engine:
            served = SingleServed(engine, pair.target.name)
            yield served
            served.wait()
