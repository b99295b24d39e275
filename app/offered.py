"""A model that is offered: what loads it, whether it is loaded, and who keeps it so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from edgellm.app.serving import Served

State = Literal["unloaded", "loading", "loaded"]


class Source(Protocol):
    """A model that may be loaded again and again. One thread at a time calls it."""

    @property
    def name(self) -> str: ...

    @property
    def aliases(self) -> Sequence[str]: ...

    @property
    def n_parallel(self) -> int: ...

    def n_bytes(self) -> int:
        """That it takes beside others.

        Raises:
            DoesNotFit: there would not be enough memory if it were the only one; the message names what would fit.
        """
        ...

    def open(self) -> AbstractContextManager[Served]:
        """Load it, in at most the memory that `n_bytes` last said. Raises LoadError and what else loading raises."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is loaded, and the threads that write its answers."""

    served: Served
    threads: ThreadPoolExecutor
    n_bytes: int
    stack: ExitStack

    def close(self) -> None:
        """Wait for its threads, keep what was learnt, and free it."""
        self.threads.shutdown(wait=True, cancel_futures=True)
        self.stack.close()


class Offered:
    """A model by its names, loaded or not. What changes of it, `ServedModels` changes."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.n_parallel = source, source.name, source.n_parallel
        self.loaded: Loaded | None = None
        self.is_loading = False
        self.is_leaving = False  # another waits for its memory: it answers who is there, and takes no more
        self.held: set[Hold] = set()
        self.waiting: list[Hold] = []  # those of requests that came while it could not be had
        self.used_at = 0.0
        self.n_loads = self.n_unloads = 0
        self.n_ctx: int | None = None  # tokens of a prompt and its answer, once it was loaded
        self.n_vocab: int | None = None

    @property
    def state(self) -> State:
        return "loaded" if self.loaded else "loading" if self.is_loading else "unloaded"

    @property
    def served(self) -> Served | None:
        loaded = self.loaded
        return loaded.served if loaded is not None else None


class Hold:
    """A model is kept loaded for one request, until `release`."""

    def __init__(self, model: Offered, asked_at: float, released: Callable[[Hold], None]) -> None:
        self.model, self.asked_at, self._released = model, asked_at, released
        self.loaded: Future[Loaded] = Future()
        """Raises Stopped, DoesNotFit, LoadError and what else loading raises."""
        self.loaded.set_running_or_notify_cancel()  # who no longer wants it releases it

    def release(self) -> None:
        """The request is done with, whether it was loaded or not; safe to call twice."""
        self._released(self)


def load(source: Source, n_bytes: int) -> Loaded:
    """Raises what loading raises."""
    with ExitStack() as stack:
        served = stack.enter_context(source.open())
        threads = ThreadPoolExecutor(served.n_parallel, "edgellm-answer")
        return Loaded(served, threads, n_bytes, stack.pop_all())


@dataclass(frozen=True, slots=True)
class Already:
    """A `Source` of what somebody else loaded, and closes."""

    served: Served
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.served.name

    @property
    def n_parallel(self) -> int:
        return self.served.n_parallel

    def n_bytes(self) -> int:
        return 0

    def open(self) -> AbstractContextManager[Served]:
        return nullcontext(self.served)
