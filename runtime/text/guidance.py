"""Constraints by llguidance: JSON schemas and grammars over the bytes of a vocabulary.

JSON comes in one form, as `json.dumps` writes it: `{"a": 1, "b": [2, 3]}`, properties in the schema's order. So
nothing is left to choose but values, most text between them is forced, and no model gets lost in white space.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

import numpy as np

from edgellm.runtime.backends.base import EngineError
from edgellm.runtime.constraint import ConstraintState, Mask
from edgellm.runtime.request import BadRequest
from edgellm.runtime.text.json_schema import read_schema
from edgellm.runtime.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MISSING = "answers are held to schemas and grammars by llguidance, which is not installed: pip install 'edgellm[json]'"
JSON_OBJECT = {"type": "object"}
LOOSE_SPACE = r"(\n {0,24}| )"
MAX_GRAMMAR_BYTES = 1 << 16
MAX_FORCED_BYTES = 1 << 13  # at the beginning of an answer; more is a text without an end
# Of the compiled grammar: a lexer's state takes 1 to 2 KiB.
_LIMITS = {"max_lexer_states": 50_000, "max_grammar_size": 500_000, "verbose_errors": False}
_WORK = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000}  # for the first token, and for any
_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
_LOOSE_OPTIONS = _JSON_OPTIONS | {
    "whitespace_flexible": True,
    "whitespace_pattern": LOOSE_SPACE,
    "item_separator": ",",
    "key_separator": ":",
}
_MARKER = b"\xff"  # begins what is no text
_LOOKS_CONTROL = re.compile(rb"<[^<> ]+>|\[[A-Z_/]+\]")  # of user-defined tokens: `<tool_call>`, `[INST]`
# What a grammar quotes: texts, comments, regular expressions, classes of characters.
_LARK_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/(?:[^/\\\n]|\\.)+/')
_GBNF_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|\[(?:[^\]\\\n]|\\.)*\]')
_GBNF_ROOT = re.compile(r"^\s*root\s*::=", re.MULTILINE)
_ELSEWHERE = re.compile(r"Resource '([^'\n]*)' is not present")
_ODD_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\[uU]")


class ConstraintFailed(EngineError):
    """A constraint that cannot be followed where the answer stands."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What answers are held to, as llguidance reads it; of no vocabulary yet."""

    source: str
    what: str  # "schema", "grammar" ..., for sentences
    markers: frozenset[int] = frozenset()  # tokens that are no text and that it names by their ids
    n_parts: int = 1  # each may take as much work as a grammar alone

    def of(self, vocabulary: Vocabulary) -> Guidance:
        """The constraint for answers of this vocabulary; some tenths of a second when it is first asked for.

        Raises:
            BadRequest: nothing matches it, or compiling it takes too much.
        """
        tokens = _tokens_of(vocabulary)
        matcher = _compiled(self, tokens.tokenizer)
        _check_beginning(matcher, self.what)
        written = tokens.is_text.copy()
        written[list(self.markers)] = True
        return Guidance(self, tokens, written, matcher)


def schema_grammar(schema: object, *, is_loose: bool = False) -> Grammar:
    """Of a JSON schema (an object, a boolean, or JSON text), or "json_object" for any object.

    Args:
        is_loose: JSON may be written in lines.

    Raises:
        BadRequest: it is no schema, or one that an answer cannot be held to; the message names what.
    """
    cleaned = read_schema(JSON_OBJECT if schema == "json_object" else schema)
    try:
        options = _LOOSE_OPTIONS if is_loose else _JSON_OPTIONS
        source = _library().grammar_from_json_schema(cleaned, overrides=options)  # type: ignore[arg-type]
    except ValueError as error:
        raise BadRequest(f"an answer cannot be held to this schema: {_reason(str(error))}") from error
    return _checked(Grammar(source, "schema"))


def text_grammar(text: str) -> Grammar:
    """Of `/a regular expression/`, a GBNF grammar (`root ::=`) or a Lark grammar (`start:`).

    Raises:
        BadRequest: it is none of them, or one that an answer cannot be held to; the message names what.
    """
    text = text.strip()
    if len(text) > MAX_GRAMMAR_BYTES:
        raise BadRequest(f"the grammar is {len(text):,} characters long: {MAX_GRAMMAR_BYTES:,} is the most")
    library = _library()
    if len(text) > 2 and text[0] == text[-1] == "/" and text[1] != "/" and "\n" not in text:
        return _checked(Grammar(library.grammar_from_regex(text[1:-1]), "regular expression"))
    lark = _lark_of_gbnf(text) if _GBNF_ROOT.search(text) else text
    _check_lark(lark)
    return _checked(Grammar(library.grammar_from_lark(lark), "grammar"))


def written_together(lark: str, parts: Mapping[str, Grammar], what: str, markers: frozenset[int]) -> Grammar:
    """Of Lark's rules, in which @name stands for one of `parts`, and <[id]> for one of `markers`.

    Raises:
        BadRequest: an answer cannot be held to it.
    """
    grammars = [{"name": "rules", "lark_grammar": lark}]
    for name, part in parts.items():
        grammars += [{**one, "name": name} for one in json.loads(part.source)["grammars"]]
    markers = markers.union(*(part.markers for part in parts.values()))
    return _checked(Grammar(json.dumps({"grammars": grammars}), what, markers, len(grammars)))


def asked_grammar(schema: object = None, grammar: str | None = None) -> Grammar | None:
    """Of either, or of neither. Raises BadRequest."""
    if schema is not None and grammar is not None:
        raise BadRequest("an answer is held to a schema or to a grammar, not to both")
    return schema_grammar(schema) if schema is not None else text_grammar(grammar) if grammar is not None else None


def _library() -> type[LLMatcher]:
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise BadRequest(MISSING) from error
    return LLMatcher


def _limits(n_parts: int) -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(**_LIMITS, **{name: n * n_parts for name, n in _WORK.items()})  # type: ignore[arg-type]


def _checked(grammar: Grammar) -> Grammar:
    """The same, once it is known to be one, whatever the vocabulary."""
    if error := _library().validate_grammar(grammar.source, limits=_limits(grammar.n_parts)):
        raise BadRequest(f"an answer cannot be held to this {grammar.what}: {_reason(error)}")
    return grammar


def _lark_of_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    bare = _GBNF_QUOTED.sub(" ", text)
    for found, name in ((_ODD_ESCAPE.search(text), r"\u"), ("." in bare, "."), ("<" in bare, "<token>")):
        if found:
            raise BadRequest(f"this GBNF grammar has {name}, which is not read: write the characters themselves")
    try:
        return gbnf_to_lark(text + "\n")
    except (Exception, RecursionError) as error:  # its parser raises plain exceptions
        raise BadRequest(f"this GBNF grammar is not read: {_reason(str(error))}") from error


def _check_lark(text: str) -> None:
    bare = _LARK_QUOTED.sub('""', text)
    if "<" in bare:
        raise BadRequest("this grammar names a control token (<...>), which is no text: leave it out")
    if "%json" in bare:
        raise BadRequest("this grammar holds a schema (%json): give it as a schema of its own")
    if found := re.search(r"\[[^\]]*\b(temperature)\s*=", bare):
        raise BadRequest(f"this grammar sets {found[1]}, which is not read: leave it out")


def _reason(error: str) -> str:
    """The first line of an error and, of a regular expression's, the one that says what is wrong."""
    if found := _ELSEWHERE.search(error):
        return f"it refers to another document, {found[1][:200]}"
    error = error.replace("NoExtensionBias", "it refers to itself without an end")
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    more = [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error:")]
    return "; ".join([line.rstrip(":")[:300] for line in lines[:1] + more]) or "it is not read"


def _compiled(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    matcher = _library()(tokenizer, grammar.source, log_level=0, limits=_limits(grammar.n_parts))
    if matcher.is_error():
        raise BadRequest(f"an answer cannot be held to this {grammar.what}: {_reason(matcher.get_error())}")
    return matcher


def _check_beginning(matcher: LLMatcher, what: str) -> None:
    """Raises BadRequest: no answer can begin, or none that does can end."""
    if not any(matcher.compute_bitmask()) or matcher.is_error():
        reason = _reason(matcher.get_error()) if matcher.is_error() else "no text matches it"
        raise BadRequest(f"an answer cannot be held to this {what}: {reason}")
    if len(matcher.compute_ff_bytes()) > MAX_FORCED_BYTES or matcher.is_error():
        raise BadRequest(
            f"an answer cannot be held to this {what}: it asks for a very long text, or one without an end"
        )


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A vocabulary as llguidance reads it."""

    tokenizer: LLTokenizer
    is_text: Mask  # (n_tokens,)
    ends: frozenset[int]
    ends_only: Mask  # (n_tokens,)
    turn_end: int | None


_known: WeakKeyDictionary[Vocabulary, _Tokens] = WeakKeyDictionary()
_knowing = threading.Lock()


def _tokens_of(vocabulary: Vocabulary) -> _Tokens:
    """Made once for a vocabulary: half a second for 150,000 tokens."""
    with _knowing:
        if vocabulary not in _known:
            _known[vocabulary] = _read_tokens(vocabulary)
        return _known[vocabulary]


class _Wrapped:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary, tokens: list[bytes], special: list[int]) -> None:
        self.tokens, self.special_token_ids, self.bos_token_id = tokens, special, vocabulary.bos
        self.eos_token_id = min(vocabulary.end_tokens, default=0)
        self._vocabulary = ref(vocabulary)  # which is the key that this is kept under

    def __call__(self, text: bytes | str) -> list[int]:
        vocabulary, data = self._vocabulary(), text.encode() if isinstance(text, str) else text
        return vocabulary.encode_leniently(data) if vocabulary is not None else []


def _read_tokens(vocabulary: Vocabulary) -> _Tokens:
    from llguidance import LLTokenizer, TokenizerWrapper

    is_text = np.array([_is_text(vocabulary, token) for token in range(vocabulary.n_tokens)])
    special = np.flatnonzero(~is_text).tolist()
    # Numbers for names, so that no grammar can mean one.
    tokens = [vocabulary.piece(i) if is_text[i] else b"%s[%d]" % (_MARKER, i) for i in range(vocabulary.n_tokens)]
    ends = sorted(vocabulary.end_tokens)
    wrapped = TokenizerWrapper(_Wrapped(vocabulary, tokens, special))
    ends_only = np.zeros(vocabulary.n_tokens, bool)
    ends_only[ends] = True
    turn_end = vocabulary.turn_end if vocabulary.turn_end in vocabulary.end_tokens else min(ends, default=None)
    return _Tokens(LLTokenizer(wrapped, eos_token=ends or None), is_text, frozenset(ends), ends_only, turn_end)


def _is_text(vocabulary: Vocabulary, token: int) -> bool:
    kind, piece = vocabulary.kinds[token], vocabulary.piece(token)
    if token in vocabulary.control or kind in ("unused", "unknown") or not piece or piece.startswith(_MARKER):
        return False
    return kind != "user" or not _LOOKS_CONTROL.fullmatch(piece)


@dataclass(frozen=True, slots=True)
class Guidance:
    """A compiled grammar for one vocabulary."""

    grammar: Grammar
    _tokens: _Tokens
    _written: Mask  # (n_tokens,), what may be written at all
    _matcher: LLMatcher  # at the beginning

    def start(self) -> ConstraintState:
        return GuidanceState(self._tokens, self._written, self._matcher.deep_copy())


class GuidanceState:
    """Where an answer stands in a grammar. The matcher may be ahead of it, by tokens that are not settled."""

    def __init__(self, tokens: _Tokens, written: Mask, matcher: LLMatcher) -> None:
        self._tokens, self._written, self._matcher = tokens, written, matcher
        self._ahead: list[int] = []  # taken by the matcher, not settled
        self._is_ended = False

    def allowed(self, ahead: Sequence[int] = ()) -> Mask:
        if self._is_ended or not self._tokens.ends.isdisjoint(ahead):
            return self._tokens.ends_only
        self._move(ahead)
        matcher, n = self._matcher, len(self._tokens.is_text)
        mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), count=n, bitorder="little").view(bool)
        self._check()
        mask &= self._written
        if matcher.is_accepting():
            mask |= self._tokens.ends_only
        if not mask.any():
            raise ConstraintFailed("the answer cannot go on: the model has no tokens for what its grammar asks for")
        return mask

    def n_legal(self, tokens: Sequence[int]) -> int:
        n_text = next((i for i, token in enumerate(tokens) if token in self._tokens.ends), len(tokens))
        if self._is_ended:
            return 0
        self._move(())
        n = self._matcher.validate_tokens(list(tokens[:n_text]))
        if n < n_text or n_text == len(tokens):
            return n
        self._move(tokens[:n])
        return n + self._matcher.is_accepting()

    def forced(self, ahead: Sequence[int] = ()) -> bytes:
        if self._is_ended or not self._tokens.ends.isdisjoint(ahead):
            return b""
        self._move(ahead)
        return self._matcher.compute_ff_bytes()[:MAX_FORCED_BYTES].partition(_MARKER)[0]

    def advance(self, tokens: Sequence[int]) -> None:
        if self._is_ended:
            return
        n_text = next((i for i, token in enumerate(tokens) if token in self._tokens.ends), len(tokens))
        self._move(tokens[:n_text])
        self._ahead, self._is_ended = [], n_text < len(tokens)

    @property
    def ending(self) -> list[int]:
        if self._is_ended or self._ahead or self._tokens.turn_end is None or not self._matcher.is_stopped():
            return []
        return [self._tokens.turn_end]

    def _move(self, ahead: Sequence[int]) -> None:
        """Have the matcher behind the settled tokens and these."""
        n = next((i for i, pair in enumerate(zip(self._ahead, ahead, strict=False)) if pair[0] != pair[1]), None)
        n = min(len(self._ahead), len(ahead)) if n is None else n
        if n < len(self._ahead):
            self._matcher.rollback(len(self._ahead) - n)
        if rest := list(ahead[n:]):
            self._matcher.consume_tokens(rest)
        self._ahead = list(ahead)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise ConstraintFailed(f"the answer cannot be held to its grammar any further: {reason}")
