"""Long beginnings that outlive the process: a target's keys and values on the disk, a file for every few tokens.

A file's name is the hash of everything that what it holds depends on: the model, how it is run, and all tokens up to
its last. Two conversations that begin alike share files, and looking for a beginning is asking for names.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

import numpy as np

from edgellm.memory.adapter import fingerprint
from edgellm.memory.split import parts_of
from edgellm.runtime.backends.base import EngineError, StopSignal
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.backends.llama_sequences import LlamaSequences
from edgellm.runtime.backends.parked import n_common
from edgellm.runtime.backends.sequence_states import SequenceStates
from edgellm.runtime.backends.state_rows import Rows
from edgellm.runtime.parallel.passes import Meeting
from edgellm.runtime.parallel.prefix_files import PrefixFiles

N_PIECE = 64  # tokens of a file
MIN_SAVED = 256  # tokens of a beginning that is worth a file
_N_AT_ONCE = 4  # files that are put back with one pass, which proves them
_MOST_WAITING = 4  # beginnings that wait to be written; older ones are forgotten
_N_SAMPLES, _SAMPLE_BYTES = 64, 2**16  # of a model's file


class SavedPrefixes:
    """Beginnings of one context. All but `offer` and `close` are for members of the meeting."""

    def __init__(self, files: PrefixFiles, meeting: Meeting, context: LlamaSequences) -> None:
        """To be made before anything is held; reads a token.

        Raises:
            UnknownState: what the model keeps of a text cannot be put on the disk.
        """
        self._files, self._meeting, self._context = files, meeting, context
        self._states = SequenceStates(context)
        self._key = key_of(context, self._states)
        self._changed = threading.Condition()
        self._offered: deque[list[int]] = deque(maxlen=_MOST_WAITING)
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def start(self, wait_until_idle: Callable[[], None]) -> None:
        """Write what is offered, in a thread, each piece once `wait_until_idle` returns: when nobody is answered."""
        self._thread = threading.Thread(
            target=self._write, args=(wait_until_idle,), name="edgellm-prefixes", daemon=True
        )
        self._thread.start()

    def offer(self, tokens: Sequence[int]) -> None:
        """Keep a text that is held, once nobody waits."""
        if len(tokens) >= MIN_SAVED:
            with self._changed:
                self._offered.append(list(tokens))
                self._changed.notify()

    def n_kept(self, tokens: Sequence[int]) -> int:
        """Tokens of a text, from its beginning on, whose files are there."""
        n = 0
        for name in names_of(self._key, tokens):
            if not self._files.has(name):
                break
            n += N_PIECE
        return n

    def restore(self, sequence: int, tokens: Sequence[int], stop: StopSignal) -> None:
        """Go on with what is kept of `tokens`, of which the sequence holds a beginning, until `stop` is set.

        Others have their passes between the pieces.
        """
        held = self._context.held[sequence]
        names = list(names_of(self._key, tokens))
        while not stop.is_set() and (group := names[len(held) // N_PIECE :][:_N_AT_ONCE]):
            first = len(held) // N_PIECE * N_PIECE
            rows = self._rows(group)
            end = first + len(rows)
            if end < len(held) + 2:
                break
            if not self._states.restore(sequence, tokens[len(held) : end], rows[len(held) - first :]):
                self._files.discard(group, "is not what the model keeps of its text")
                break
            self._meeting.give_way()
        self._files.use(names[: len(held) // N_PIECE])

    def close(self) -> None:
        """Write what waits, and end; nobody may be answered any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _rows(self, names: Sequence[str]) -> Rows:
        """Of the files that are there and whole, (n_tokens, row_bytes)."""
        row_bytes = self._states.layout.row_bytes
        parts = []
        for name in names:
            payload = self._files.read(name, N_PIECE * row_bytes)
            if payload is None:
                break
            parts.append(payload)
        return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, row_bytes)

    def _write(self, wait_until_idle: Callable[[], None]) -> None:
        while (tokens := self._next()) is not None:
            try:
                self._save(tokens, wait_until_idle)
            except OSError as error:
                self._files.refused(error)
            except EngineError as error:
                self._files.refused(OSError(None, str(error)))

    def _next(self) -> list[int] | None:
        with self._changed:
            while not self._offered and not self._is_closed:
                self._changed.wait()
            return self._offered.pop() if self._offered else None

    def _save(self, tokens: Sequence[int], wait_until_idle: Callable[[], None]) -> None:
        """A piece at a time, each while nobody is answered. Raises OSError, EngineError."""
        names = list(names_of(self._key, tokens))
        for n, name in enumerate(names, 1):
            if self._files.has(name):
                continue
            wait_until_idle()
            rows = self._held_rows(tokens[: n * N_PIECE])
            if rows is None:
                return
            self._files.write(name, rows.tobytes())
        self._files.use(names)

    def _held_rows(self, tokens: Sequence[int]) -> Rows | None:
        """Of the last piece of `tokens`, where a sequence still begins with them."""
        with self._meeting.member():
            self._meeting.settle()
            for sequence, held in enumerate(self._context.held):
                if n_common(held, tokens) == len(tokens):
                    return self._states.rows(sequence, len(tokens) - N_PIECE, len(tokens))
        return None


def names_of(key: bytes, tokens: Sequence[int]) -> Iterator[str]:
    """The names of a text's files, one for each whole piece."""
    digest = hashlib.sha256(key)
    for end in range(N_PIECE, len(tokens) + 1, N_PIECE):
        digest.update(np.asarray(tokens[end - N_PIECE : end], "<i4").tobytes())
        yield digest.copy().hexdigest()


def key_of(context: LlamaSequences, states: SequenceStates) -> bytes:
    """Everything but its tokens that the state of a text depends on."""
    model = context.model
    # Factors that a model has for long contexts alone are chosen by the context's size.
    is_scaled = any("rope_factors" in tensor.name for tensor in model.header.tensors)
    parts: list[object] = [
        identity(model),
        fingerprint(model.options.loras) if model.options.loras else "",
        states.layout,
        model.placement_key,
        kernels().variant,
        version("llama-cpp-python"),
        version("edgellm"),
        context.n_ctx * context.n_sequences if is_scaled else 0,
    ]
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).digest()


def identity(model: LlamaModel) -> str:
    """A hash of a model's files: sizes, times of change, and samples of their content."""
    digest = hashlib.sha256()
    for path in parts_of(model.path):
        status = path.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            for i in range(_N_SAMPLES):
                file.seek(status.st_size * i // _N_SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
