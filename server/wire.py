"""How answers are told, whole or piece by piece: what the two forms have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from edgellm.runtime.answer import Answer, FinishReason, Piece
from edgellm.runtime.logprobs import Logprob
from edgellm.runtime.text.vocabulary import Vocabulary
from edgellm.server.calls import Call
from edgellm.server.errors import ApiError
from edgellm.server.texts import piece_text

FINISH: Final[dict[FinishReason, str]] = {
    "stop": "stop",
    "stop_string": "stop",
    "tool_calls": "tool_calls",
    "length": "length",
    "context": "length",
    "interrupted": "length",  # never told: its client is gone
}


class WireKind(Protocol):
    """A class of wires, before the call is known that one is for."""

    is_named: bool  # whether each event of a stream is named by its `type`

    def __call__(self, call: Call) -> Wire: ...

    def unread(self, error: ApiError) -> dict[str, Any]:
        """All that a stream says where the request could not be read, or its model not be loaded."""
        ...


class Wire(Protocol):
    """Tells the answers of one call."""

    is_named: bool  # whether each event of a stream is named by its `type`
    ends_with_done: bool  # whether a stream's last event is [DONE]

    def failed(self, error: ApiError) -> list[dict[str, Any]]:
        """What a stream ends with instead, where something failed on the way."""
        ...

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """All in one object."""
        ...

    def opening(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        ...

    def wrote(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """A part of a choice."""
        ...

    def ended(self, index: int, answer: Answer) -> list[dict[str, Any]]:
        """A choice is whole."""
        ...

    def closing(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """What a stream ends with."""
        ...


class PlainEvents:
    """What OpenAI's older streams have in common."""

    is_named, ends_with_done = False, True

    @staticmethod
    def unread(error: ApiError) -> dict[str, Any]:
        return error.to_json()

    def failed(self, error: ApiError) -> list[dict[str, Any]]:
        return [error.to_json()]


def chat_logprobs(vocabulary: Vocabulary, found: Sequence[Logprob]) -> dict[str, Any]:
    """Of the tokens of a text; the token that ended it has none."""
    told = [one for one in found if one.token not in vocabulary.end_tokens]
    return {"content": [_chat_logprob(vocabulary, one) for one in told], "refusal": None}


def _chat_logprob(vocabulary: Vocabulary, found: Logprob) -> dict[str, Any]:
    top = [_chat_token(vocabulary, token, logprob) for token, logprob in found.top]
    return {**_chat_token(vocabulary, found.token, found.logprob), "top_logprobs": top}


def _chat_token(vocabulary: Vocabulary, token: int, logprob: float) -> dict[str, Any]:
    """`bytes` are those of the text: a control token has none."""
    name = vocabulary.literal(token).decode("utf-8", "replace")
    return {"token": name, "logprob": logprob, "bytes": list(vocabulary.piece(token))}


def text_logprobs(
    vocabulary: Vocabulary, found: Sequence[Logprob], *, begin: int = 0, echoed: Sequence[int] = ()
) -> dict[str, list[Any]]:
    """The four lists of the older form.

    Args:
        found: of every token but the first of `echoed`, which nothing precedes.
        begin: characters of the choice's text before the answer.
        echoed: the prompt's tokens, told first.
    """
    tokens = [*echoed, *(one.token for one in found[max(len(echoed) - 1, 0) :])]
    scores: list[Logprob | None] = [None, *found] if echoed else list(found)
    return {
        "tokens": [piece_text(vocabulary, token) for token in tokens],
        "token_logprobs": [one.logprob if one is not None else None for one in scores],
        "top_logprobs": [_likeliest(vocabulary, one) if one is not None else None for one in scores],
        "text_offset": [
            *_offsets(vocabulary, echoed),
            *(begin + one.begin for one in found[max(len(echoed) - 1, 0) :]),
        ],
    }


def _likeliest(vocabulary: Vocabulary, found: Logprob) -> dict[str, float]:
    """The likeliest tokens and the one that stands there."""
    told = {piece_text(vocabulary, token): logprob for token, logprob in reversed(found.top)}
    return dict(reversed(told.items())) | {piece_text(vocabulary, found.token): found.logprob}


def _offsets(vocabulary: Vocabulary, tokens: Sequence[int]) -> list[int]:
    """Characters before each token."""
    import codecs

    decoder, n, offsets = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
    for token in tokens:
        offsets.append(n)
        n += len(decoder.decode(vocabulary.literal(token)))
    return offsets
