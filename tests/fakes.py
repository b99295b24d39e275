"""The smallest true parts: a table as a language model, vocabularies of a few tokens, a drafter that misbehaves."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgellm.app.serving import Served
from edgellm.runtime.backends.base import CannotTruncate, ContextFull, EngineError, Logits
from edgellm.runtime.drafters.base import MODEL, Draft, Drafter, Guess, Proposer
from edgellm.runtime.sampling import GREEDY, Distribution, Sampling
from edgellm.runtime.text.vocabulary import TokenKind, Vocabulary


def random_table(n_vocab: int, seed: int = 0, scale: float = 2.0) -> NDArray[np.float32]:
    """A language model whose logits depend on the last two tokens, (n_vocab, n_vocab, n_vocab)."""
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, scale, (n_vocab, n_vocab, n_vocab)).astype(np.float32)


class TableBackend:
    """`Backend` over a table. Rows that it handed out turn to NaN with the next call, as the contract allows."""

    def __init__(
        self, table: NDArray[np.float32], *, n_ctx: int = 4096, max_outputs: int = 16, can_truncate: bool = True
    ) -> None:
        self.table, self.n_ctx, self.max_outputs, self.can_truncate = table, n_ctx, max_outputs, can_truncate
        self.n_vocab = table.shape[-1]
        self.engine_s = 0.0
        self.can_shift = can_truncate
        self.tokens: list[int] = []
        self.n_passes = 0
        self.n_read = 0
        self.closed = False
        self._rows: Logits = np.empty((0, self.n_vocab), np.float32)

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        self._rows[:] = np.nan
        if self.closed:
            raise EngineError("closed")
        if n_outputs > min(self.max_outputs, len(tokens)):
            raise EngineError(f"{n_outputs} rows of {len(tokens)} tokens")
        if len(self.tokens) + len(tokens) > self.n_ctx:
            raise ContextFull("full")
        if any(not 0 <= token < self.n_vocab for token in tokens):
            raise EngineError("no such token")
        self.tokens += tokens
        self.n_passes += bool(tokens)
        self.n_read += len(tokens)
        held = [0, *self.tokens]
        self._rows = np.array(
            [self.table[held[i - 1], held[i]] for i in range(len(held) - n_outputs, len(held))], np.float32
        ).reshape(n_outputs, self.n_vocab)
        return self._rows

    def truncate(self, length: int) -> None:
        self._rows[:] = np.nan
        if 0 < length < len(self.tokens) and not self.can_truncate:
            raise CannotTruncate("recurrent")
        del self.tokens[max(0, length) :]

    def forget_oldest(self, n: int) -> None:
        assert self.can_shift
        del self.tokens[:n]

    def close(self) -> None:
        self.closed = True


class NonsenseDrafter:
    """Proposes random tokens; with `probs`, truly drawn from random distributions that have nothing to do with it."""

    engine_s = 0.0

    def __init__(self, n_vocab: int, *, probs: bool = False, seed: int = 0) -> None:
        self._n_vocab, self._probs, self._rng = n_vocab, probs, np.random.default_rng([seed, 2])

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        return None

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        n = int(self._rng.integers(0, limit + 1)) if limit > 0 else 0
        weights = self._rng.dirichlet(np.full(self._n_vocab, 0.5), n)
        q = [Distribution(np.arange(self._n_vocab), row) for row in weights]
        return Draft([item.draw(self._rng) for item in q], q if self._probs else None, "nonsense")

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        return None

    def close(self) -> None:
        return None


class Alone:
    """A draft model as the only drafter: of each round its first tokens that are not provisional."""

    def __init__(self, model: Proposer) -> None:
        self.model = model
        self.begin, self.observe, self.close = model.begin, model.observe, model.close

    @property
    def engine_s(self) -> float:
        return self.model.engine_s

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        settled: list[Guess] = []
        if limit > 0:
            for n_passes, guesses in enumerate(self.model.drafting(tokens, ()), 1):
                settled = [guess for guess in guesses if not guess.provisional][:limit]
                if len(settled) == limit or n_passes > 4 * limit:
                    break
        probs = [guess.probs for guess in settled]
        return Draft([guess.token for guess in settled], probs if any(probs) else None, MODEL)


def alone(drafter: Drafter | Proposer) -> Drafter:
    """Itself, if the loop can ask it."""
    return cast(Drafter, drafter if hasattr(drafter, "propose") else Alone(cast(Proposer, drafter)))


class PieceTokenizer:
    """A vocabulary given piece by piece; text is cut into the longest pieces that fit, from the left.

    Like a real tokenizer it only promises text: it has no way of its own to spell half a character.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        control: Mapping[str, int] | None = None,
        *,
        kinds: Sequence[TokenKind] | None = None,
        bos: str | None = None,
        adds_bos: bool = False,
        ends: Sequence[str] = (),
        parses_literals: bool = False,
    ) -> None:
        """`control`: literal -> id, among `pieces` (whose own entry is then ignored).

        `parses_literals`: as llama.cpp does with user-defined tokens, even where text should stay text.
        """
        self._literals = {token: text.encode() for text, token in (control or {}).items()}
        self._pieces = [b"" if i in self._literals else piece for i, piece in enumerate(pieces)]
        self.n_tokens = len(self._pieces)
        self._kinds = list(kinds) if kinds else ["normal"] * self.n_tokens
        for token in self._literals:
            self._kinds[token] = "control"
        self.bos = (control or {})[bos] if bos else None
        self.adds_bos = adds_bos
        self.end_tokens = frozenset((control or {})[text] for text in ends)
        self.turn_end = min(self.end_tokens, default=None)
        self._by_piece: dict[bytes, int] = {}
        for token, piece in enumerate(self._pieces):
            if piece and self._kinds[token] in ("normal", "byte", "user"):
                self._by_piece.setdefault(piece, token)
        if parses_literals:
            self._by_piece |= {text: token for token, text in self._literals.items()}
        self._longest = max(map(len, self._by_piece), default=1)
        self.n_bytes_read = 0
        self.eos = self.turn_end
        spellings = sorted(self._literals.items(), key=lambda item: len(item[1]), reverse=True)
        self._control = {spelling: token for token, spelling in spellings}
        self._spelled = re.compile(b"(" + b"|".join(map(re.escape, self._control)) + b")" if spellings else b"(?!)()")

    def tokenize_marked(self, text: bytes) -> list[int]:
        tokens: list[int] = []
        for i, part in enumerate(self._spelled.split(text)):
            tokens += [self._control[part]] if i % 2 else self.tokenize(part)
        return tokens

    def strips(self, token: int) -> tuple[bool, bool]:
        return False, False

    def tokenize(self, text: bytes) -> list[int]:
        text.decode("utf-8")
        self.n_bytes_read += len(text)
        tokens, at = [], 0
        while at < len(text):
            for length in range(self._longest, 0, -1):
                token = self._by_piece.get(text[at : at + length])
                if token is not None and at + length <= len(text):
                    tokens.append(token)
                    break
            at += length
        return tokens

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def literal(self, token: int) -> bytes:
        return self._literals.get(token, self._pieces[token])

    def kinds(self) -> list[TokenKind]:
        return list(self._kinds)


def byte_vocabulary(*words: bytes, control: Sequence[str] = (), **options: object) -> Vocabulary:
    """256 bytes, words, control tokens, in that order of ids."""
    pieces = [bytes([byte]) for byte in range(256)] + list(words) + [b""] * len(control)
    ids = {text: 256 + len(words) + i for i, text in enumerate(control)}
    return Vocabulary(PieceTokenizer(pieces, ids, **options))  # type: ignore[arg-type]


class FakeSource:
    """A `Source` that yields what it is given, when its gate lets it, and remembers what was done."""

    def __init__(self, served: Served, *, n_bytes: int = 1, aliases: Sequence[str] = ()) -> None:
        self.served, self.size, self.aliases = served, n_bytes, tuple(aliases)
        self.name, self.n_parallel = served.name, served.n_parallel
        self.gate = threading.Semaphore(10**6)  # a release lets one load through
        self.failures: list[Exception] = []  # of the next loads
        self.unfit: Exception | None = None
        self.n_open = self.n_begun = self.n_opened = 0

    def n_bytes(self) -> int:
        if self.unfit is not None:
            raise self.unfit
        return self.size

    @contextlib.contextmanager
    def open(self) -> Iterator[Served]:
        self.n_begun += 1
        assert self.gate.acquire(timeout=20)
        if self.failures:
            raise self.failures.pop(0)
        self.n_open, self.n_opened = self.n_open + 1, self.n_opened + 1
        try:
            yield self.served
        finally:
            self.n_open -= 1
