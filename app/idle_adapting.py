"""A drafter learns while nobody waits: between the answers of a chat, in a child that stands still while one is made.

What the child finds better is used from the next question on: the target keeps all that it has read, and its answers
are its own as before.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from edgellm.app.adapt_jobs import AdaptError, AdaptJob
from edgellm.app.adapting import Training
from edgellm.app.defaults import BadSetting, adapted_folder
from edgellm.app.listener import LOG, SILENCE, Listener, Silence
from edgellm.app.loading import Pair
from edgellm.app.next_training import BOUNDS, IdleBounds, NextTraining, hindrance
from edgellm.memory.errors import EdgellmError
from edgellm.memory.plan import DoesNotFit

if TYPE_CHECKING:
    from edgellm.runtime.conversation import ChatSession
    from edgellm.runtime.distillation.orders import Result
    from edgellm.runtime.engine import Engine

TICK_S = 2.0  # between looks at the child, the battery and the memory


class IdleAdapting:
    """Lets the drafter of a session learn. Use it as a context manager, for as long as the session is used.

    Nothing of it disturbs the session: what fails is a warning, once, and nothing more is learnt.
    """

    def __init__(
        self, session: ChatSession, pair: Pair, bounds: IdleBounds = BOUNDS, listener: Listener = SILENCE
    ) -> None:
        """
        Args:
            pair: what the session's engine was opened from.
            listener: told, before an answer and at the end, what was learnt.

        Raises:
            BadSetting: nothing can learn with this pair; the message says why.
        """
        if (why := hindrance(session, pair)) is not None:
            raise BadSetting(why)
        self._session, self._pair, self._bounds, self._listener = session, pair, bounds, listener
        self._engine = session.engine
        self._untold: list[tuple[bool, str]] = []  # (is a warning, text), until nobody is typing
        self._lock = threading.RLock()  # of what stands in the next four lines
        self._is_answering, self._closed, self._gave_up = False, False, False
        self._training: Training | None = None
        self._found: Result | None = None  # that is still to be taken into use,
        self._ready: Engine | None = None  # by this engine
        self._woken = threading.Event()
        self._hold = ExitStack()  # the lock on learning beside a chat
        self._next = NextTraining(session, pair, bounds)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> IdleAdapting:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Around each answer of the session: nothing is learnt meanwhile, and what was learnt before is used."""
        with self._lock:
            self._is_answering = True
            self._stand_still()
        self._take_into_use()
        self._tell()
        before = self._session.last
        try:
            yield
        finally:
            answer = self._session.last
            with self._lock:
                self._is_answering = False
                if answer is not None and answer is not before:
                    self._next.answered(len(answer.tokens))
            self._woken.set()

    def close(self) -> None:
        """End what is being learnt, at once: what it kept is gone on with in the next chat. Safe to call twice."""
        from edgellm.runtime.bringup.exchange import close_drafter, without_drafter

        with self._lock:
            self._closed = True
            self._stand_still()
            self._drop()
        self._woken.set()
        if self._found is not None:
            self._untold.append((False, _news(self._found)))
        if self._ready is not None:
            close_drafter(self._ready)
        self._found = self._ready = None
        self._tell()
        if self._session.engine is not self._engine:
            self._session.engine = without_drafter(self._session.engine)
            self._engine = self._session.engine

    # On the thread that called.

    def _stand_still(self) -> None:
        if self._training is None:
            return
        with self._guarded():
            if (outcome := self._training.poll()) is not None:
                self._ended(outcome.result)
            elif self._training.may_stand_still:
                self._training.suspend()
            else:
                self._drop()  # it has only begun

    def _take_into_use(self) -> None:
        """Exchange the drafter where another one is used from now on."""
        from edgellm.runtime.bringup.exchange import close_drafter

        with self._lock:
            self._load()
            found, ready, self._found, self._ready = self._found, self._ready, None, None
        if found is not None and ready is not None:
            close_drafter(self._session.engine)
            self._session.engine = ready
            self._untold.append((False, _news(found)))

    def _tell(self) -> None:
        while self._untold:
            is_warning, text = self._untold.pop(0)
            (self._listener.warning if is_warning else self._listener.note)(text)

    # On a thread of its own.

    def _watch(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # Ctrl-C is none of the child's, from its first moment on
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while not self._closed and not self._gave_up:
            with self._guarded():
                self._tend()
            self._woken.wait(TICK_S)
            self._woken.clear()

    def _tend(self) -> None:
        job = self._next.job() if self._training is None and self._found is None and not self._is_answering else None
        with self._lock:
            if self._closed:
                return
            if self._is_answering:
                self._stand_still()  # Ctrl-Z and `fg` let it go on
            elif self._training is not None:
                self._mind(self._training)
            elif self._found is not None:
                self._load()
            elif job is not None:
                self._begin(job)

    def _mind(self, training: Training) -> None:
        from edgellm.memory.device import this_machine

        if (outcome := training.poll()) is not None:
            self._ended(outcome.result)
        elif not this_machine().usable_bytes:
            self._drop()  # somebody else needs the memory
        elif self._bounds.may_spend:
            training.resume()
        elif training.may_stand_still:
            training.suspend()

    def _begin(self, job: AdaptJob) -> None:
        with ExitStack() as stack:
            try:
                stack.enter_context(_only_one())
                self._training = Training.start(job, _Aside(self._untold))
            except AdaptError:  # in another process: perhaps some answers later
                return self._next.later()
            self._hold = stack.pop_all()

    # On either.

    def _load(self) -> None:
        """Have the drafter ready that is used from now on: to load it takes the better part of a second."""
        from edgellm.app.drafter_adapters import choose
        from edgellm.runtime.bringup.exchange import with_draft_file

        if self._found is None or self._ready is not None:
            return
        with self._guarded():
            engine = self._session.engine
            chosen = choose(self._pair.target, self._next.draft)
            if chosen.fingerprint != engine.options.draft_adapter:
                self._ready = with_draft_file(engine, chosen.path, chosen.fingerprint)
        if self._ready is None:
            self._found = None

    def _ended(self, result: Result | None) -> None:
        self._drop()
        if result is None or result.reason == "stopped":
            return
        self._next.learnt()
        if result.adopted or result.taken_back is not None:
            self._found = result

    def _drop(self) -> None:
        training, self._training = self._training, None
        if training is not None:
            training.end()
        self._hold.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """What fails inside ends the learning, not the chat."""
        try:
            yield
        except (EdgellmError, OSError) as error:
            with self._lock:
                self._gave_up = True
                self._drop()
            is_news = not isinstance(error, DoesNotFit)
            self._untold.append((is_news, f"nothing is learnt in this chat any more: {error}"))


class _Aside(Silence):
    """Keeps warnings until nobody is typing."""

    def __init__(self, untold: list[tuple[bool, str]]) -> None:
        self._untold = untold

    def warning(self, text: str) -> None:
        self._untold.append((True, text))


def adapt_while_idle(
    session: ChatSession,
    model: str | None = None,
    draft: str | None = None,
    *,
    bounds: IdleBounds = BOUNDS,
    listener: Listener = LOG,
) -> IdleAdapting:
    """Let the drafter of a session learn from its answers, between them; see `IdleAdapting.answering`.

    Args:
        model, draft: what the session's engine was loaded from.

    Raises:
        BadSetting: nothing can learn with this pair; the message says why.
        BadReference, UnknownModel, NotHere: as `load`.
    """
    from edgellm.app.references import resolve_pair

    target, drafter = resolve_pair(model, draft, offline=True, listener=listener)
    return IdleAdapting(session, Pair(target, drafter, session.engine.options), bounds, listener)


def _news(result: Result) -> str:
    """What a user is told: "the drafter has learnt from 14 answers: 2.71 -> 2.95 tokens a pass on those held out"."""
    news = []
    if result.taken_back is not None:
        news.append(f"the drafter no longer uses what it learnt before: {result.taken_back}")
    if result.adopted:
        compared = result.comparison or {}
        old, new = (compared.get(side, {}).get("tokens_per_pass", 0.0) for side in ("old", "new"))
        news.append(
            f"the drafter has learnt from {result.n_taught:,} answers: {old:.2f} -> {new:.2f} tokens a pass on those "
            "held out"
        )
    return "; ".join(news)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Hold this user's lock on learning beside a chat, which the system frees when a process dies.

    Raises:
        AdaptError: another chat learns.
    """
    from filelock import FileLock, Timeout

    from edgellm.runtime.learning.files import private_folder

    private_folder(adapted_folder())
    lock = FileLock(adapted_folder() / "beside-chat.lock", mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AdaptError("another chat learns just now") from None
    try:
        yield
    finally:
        lock.release()
