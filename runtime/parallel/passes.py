"""Passes that several conversations share. Each runs the ordinary loop in a thread of its own; here their passes meet.

A conversation that wants a pass waits. When all of them wait, the last to come runs one pass for all: what each wants
verified, and a slice of whoever is still reading. So decoding never waits for more than a slice (chunked prefill,
Sarathi-Serve, arXiv:2403.02310), and only one conversation at a time runs anything but the engine: what they share
needs no locks of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgellm.runtime.backends.base import EngineError, Interrupted, Logits, StopSignal
from edgellm.runtime.backends.llama_sequences import LlamaSequences, Part

MAX_JOINED = 32  # tokens that are computed whole, beside what others decode; more is read in slices
N_SLICE = 8  # tokens of a slice at least, so that a prompt is read some day
_TURN_S = 0.02  # that one who gives way waits for others to want something
N_LATELY = 24  # passes that say what the next will be like, two or three seconds of them


@dataclass(slots=True, eq=False)
class Job:
    """What one conversation waits for."""

    sequence: int
    tokens: Sequence[int]
    n_outputs: int
    wants_states: bool = False  # of all its tokens, which fit into a pass; it shares none
    n_read: int = 0
    states: NDArray[np.float32] | None = None
    logits: Logits | None = None
    error: Exception | None = None
    took_s: float = 0.0  # of the passes that it was in

    @property
    def n_left(self) -> int:
        return len(self.tokens) - self.n_read

    @property
    def is_done(self) -> bool:
        return self.logits is not None or self.error is not None

    @property
    def reads(self) -> bool:
        """Whether it may be cut into slices."""
        return not self.n_outputs or self.n_left > MAX_JOINED

    def part(self, n_most: int) -> Part:
        """The next part of it, of so many tokens at most; logits come with the last part."""
        n = min(self.n_left, n_most)
        if n < self.n_left:
            n = min(n, self.n_left - self.n_outputs)
            return Part(self.sequence, self.tokens[self.n_read : self.n_read + n], 0)
        return Part(self.sequence, self.tokens[self.n_read :], self.n_outputs)


@dataclass(frozen=True, slots=True)
class Shape:
    """A pass as its cost depends on it."""

    n_decoding: int  # conversations that have tokens verified, or draft
    n_read: int  # tokens of a slice of who reads
    idle_s: float  # since the pass before, in which each of them chose what comes next


@dataclass(slots=True, eq=False)
class PassQueue:
    """Who waits for passes of one model."""

    context: LlamaSequences
    jobs: list[Job] = field(default_factory=list)  # the oldest first
    slice_for: Callable[[int, int], int] | None = None  # tokens that are decoded, their context -> tokens of a slice
    observe: Callable[[int, int, float], None] | None = None  # tokens of a pass, their context, seconds
    lately: deque[Shape] = field(default_factory=lambda: deque(maxlen=N_LATELY))  # passes in which somebody decodes
    was_alone: bool = False  # the last pass was of one who wanted states

    def compose(self) -> tuple[list[Job], list[Part]]:
        """The next pass: everybody who decodes, as far as it has room, and a slice of who reads."""
        n_tokens, n_rows = self.context.n_batch, self.context.n_outputs
        alone = [job for job in self.jobs if job.wants_states]
        self.was_alone = bool(alone) and not (self.was_alone and len(alone) < len(self.jobs))  # in turn with the others
        if self.was_alone:
            return alone[:1], [alone[0].part(n_tokens)]
        return self._joined(n_tokens, n_rows)

    def _joined(self, n_tokens: int, n_rows: int) -> tuple[list[Job], list[Part]]:
        waiting = [job for job in self.jobs if not job.wants_states]
        jobs: list[Job] = []
        parts: list[Part] = []
        for job in waiting:
            if not job.reads and job.n_left <= n_tokens and job.n_outputs <= n_rows:
                jobs.append(job)
                parts.append(job.part(n_tokens))
                n_tokens -= job.n_left
                n_rows -= job.n_outputs
        allowance = n_tokens
        if jobs:
            n_decoded = sum(len(part.tokens) for part in parts)
            if self.slice_for is not None:
                allowance = min(n_tokens, max(N_SLICE, self.slice_for(n_decoded, self._context_of(jobs))))
        for job in waiting:
            is_slice = job not in jobs and (job.reads or job.n_left > self.context.n_batch)
            part = job.part(allowance) if is_slice and allowance > 0 else None
            if part is not None and part.tokens and part.n_outputs <= n_rows:
                jobs.append(job)
                parts.append(part)
                allowance -= len(part.tokens)
                n_rows -= part.n_outputs
        return jobs, parts

    def run(self, jobs: Sequence[Job], parts: Sequence[Part], idle_s: float = 0.0) -> None:
        """Compute a pass, `idle_s` after the one before, and tell its jobs what came of it."""
        n, behind = sum(len(part.tokens) for part in parts), self._context_of(jobs)
        wants_states = jobs[0].wants_states
        try:
            rows, took_s = self.context.forward(parts, wants_states=wants_states)
        except EngineError as error:
            for job in jobs:
                job.error = error
            return
        if self.observe is not None:
            self.observe(n, behind, took_s)
        n_read = sum(len(part.tokens) for job, part in zip(jobs, parts, strict=True) if job.reads)
        if n_decoding := sum(not job.reads for job in jobs):
            self.lately.append(Shape(n_decoding, n_read, idle_s))
        for job, part, logits in zip(jobs, parts, rows, strict=True):
            job.n_read += len(part.tokens)
            job.took_s += took_s
            if wants_states:
                job.states = self.context.hidden_states(n).copy()
            if not job.n_left:
                job.logits = logits

    def _context_of(self, jobs: Sequence[Job]) -> int:
        """Tokens before a pass, on the average."""
        return sum(len(self.context.held[job.sequence]) for job in jobs) // max(1, len(jobs))


class Meeting:
    """Where conversations meet for passes of a target and of its drafter."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queues: list[PassQueue] = []
        self._n_running = 0  # conversations that compute something themselves
        self._in_pass = False
        self._last: PassQueue | None = None
        self._last_s = time.perf_counter()  # when a pass ended

    def queue(self, context: LlamaSequences) -> PassQueue:
        """Passes of one more model. The target's comes first."""
        self._queues.append(PassQueue(context))
        return self._queues[-1]

    @contextmanager
    def member(self) -> Iterator[None]:
        """A conversation goes on. Passes wait for it until it leaves or wants one itself, so it must not dawdle."""
        with self._changed:
            self._n_running += 1
            try:
                yield
            finally:
                self._n_running -= 1
                self._changed.notify_all()

    def wait(self, queue: PassQueue, job: Job, stop: StopSignal) -> Logits:
        """Take part in passes until the job is done. The rows are valid until this conversation wants the next.

        Raises:
            Interrupted: `stop` was set while it was reading.
            EngineError: a pass that it was in failed.
        """
        queue.jobs.append(job)
        self._n_running -= 1
        try:
            while not job.is_done:
                if job.reads and stop.is_set():
                    raise Interrupted("stopped while reading")
                if self._in_pass or self._n_running or not self._run_one():
                    self._changed.wait()
        except BaseException:
            self._leave(queue, job)
            raise
        if job.error is not None:
            raise job.error
        assert job.logits is not None
        return job.logits

    def settle(self) -> None:
        """Wait until no pass is running: what the engine holds may then be changed."""
        while self._in_pass:
            self._changed.wait()

    def give_way(self) -> None:
        """Let others have a pass, if they want one, in the middle of something long; no pass is running behind it."""
        self._n_running -= 1
        try:
            if self._in_pass or self._n_running:
                self._changed.notify_all()
                self._changed.wait(_TURN_S)
            else:
                self._run_one()
        finally:
            self._n_running += 1
        self.settle()

    def _leave(self, queue: PassQueue, job: Job) -> None:
        """Go on without what one waited for: no pass begins before, and the one that runs may be over its sequence."""
        self._take_out(queue, job)
        self.settle()

    def _take_out(self, queue: PassQueue, job: Job) -> None:
        if job in queue.jobs:
            queue.jobs.remove(job)
            self._n_running += 1

    def _run_one(self) -> bool:
        """Run the next pass; False where nobody wants one. Others may come in while the engine computes."""
        queue = self._next_queue()
        if queue is None:
            return False
        self._last = queue
        jobs, parts = queue.compose()
        self._in_pass = True
        self._changed.release()
        try:
            queue.run(jobs, parts, time.perf_counter() - self._last_s)
        finally:
            self._last_s = time.perf_counter()
            self._changed.acquire()
            self._in_pass = False
            for job in jobs:
                if job.is_done:
                    self._take_out(queue, job)
            self._changed.notify_all()
        return True

    def _next_queue(self) -> PassQueue | None:
        """Drafts first, for those who verify wait for them; who only reads a draft model's prompt takes turns."""
        for queue in reversed(self._queues[1:]):
            if any(not job.reads for job in queue.jobs) or (queue.jobs and self._last is not queue):
                return queue
        return next((queue for queue in self._queues if queue.jobs), None)
