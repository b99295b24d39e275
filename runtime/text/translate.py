"""Text that grows, in two vocabularies at once. All work is done on bytes, in a window at the end.

Re-tokenising only what is new would split words where the two vocabularies disagree (acceptance then falls to a
quarter, arXiv:2604.16368); re-tokenising everything would cost time that grows with the context. So the tail is
tokenised again from the last place where a tokenizer is sure to begin a token anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.text.vocabulary import CannotEncode, Vocabulary, incomplete_tail

WINDOW = 16  # tokens at the end that may be tokenised again


def safe_start(pieces: Sequence[bytes]) -> int:
    """Index of the last piece that begins a word (see `Vocabulary.encode_words`) or follows a control token.

    Tokenising from there on gives what tokenising the whole text would. 0 where there is none.
    """
    for i in range(len(pieces) - 1, 0, -1):
        before, first = pieces[i - 1][-1:], pieces[i][:1]
        if not before or (first.isspace() and not before.isspace() and (first not in b"\r\n" or before.isalnum())):
            return i
    return 0


class GrowingText:
    """Tokens of one vocabulary for a text that grows by any bytes; `tokens` may change in the window at its end."""

    def __init__(self, vocabulary: Vocabulary, prefix: Sequence[int]) -> None:
        """`prefix`: tokens that stand for themselves (a rendered prompt) and are never tokenised again."""
        self._vocabulary = vocabulary
        self._n_prefix = len(prefix)
        self.tokens = list(prefix)
        self.unfinished = b""  # bytes of a UTF-8 character that is not complete, not in `tokens` yet

    def append(self, data: bytes) -> int:
        """Add text; returns the index from which on `tokens` may have changed."""
        data = self.unfinished + data
        n_open = incomplete_tail(data)
        self.unfinished = data[len(data) - n_open :]
        data = data[: len(data) - n_open]
        if not data:
            return len(self.tokens)
        first = max(self._n_prefix, len(self.tokens) - WINDOW)
        pieces = [self._vocabulary.piece(token) for token in self.tokens[first:]]
        start = safe_start([*pieces, data])
        text = b"".join(pieces[start:]) + data
        try:
            again = self._vocabulary.encode_words(text)
        except CannotEncode:
            again = self._vocabulary.encode_leniently(text)
        self.tokens[first + start :] = again
        return first + start

    def copy(self) -> GrowingText:
        """The same text, to be continued in another way."""
        twin = GrowingText(self._vocabulary, ())
        twin._n_prefix, twin.tokens, twin.unfinished = self._n_prefix, self.tokens.copy(), self.unfinished
        return twin

    def drop_oldest(self, n_keep: int) -> None:
        """Forget all but the newest `n_keep` tokens (a sliding window)."""
        n_dropped = max(0, len(self.tokens) - n_keep)
        del self.tokens[:n_dropped]
        self._n_prefix = max(0, self._n_prefix - n_dropped)


def continuation(vocabulary: Vocabulary, tail: Sequence[int], text: bytes) -> list[int]:
    """The tokens that would spell `text` behind the tokens `tail`, as the vocabulary's own tokenizer borders them.

    A proposal must begin where `tail` ends. Where the tokenizer would rather merge across that border, the model has
    already decided otherwise, and `text` is tokenised by itself.
    """
    text = text[: len(text) - incomplete_tail(text)]
    if not text:
        return []
    pieces = [vocabulary.piece(token) for token in tail]
    context = b"".join(pieces[safe_start([*pieces, text]) :])
    n_bytes = 0
    joint = vocabulary.encode_words(context + text)
    for i, token in enumerate(joint):
        if n_bytes >= len(context):
            if n_bytes == len(context):
                return joint[i:]
            break
        n_bytes += len(vocabulary.piece(token))
    return vocabulary.encode_words(text)
