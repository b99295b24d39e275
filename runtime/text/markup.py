"""What people wrote kept apart from what a chat template writes, and both turned to tokens.

A template sees every message as it was written, but for the first letter of whatever might become a control token: a
stand-in takes its place until the text is tokenised. So no message can forge one, whatever the template does with it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from edgellm.memory.errors import EdgellmError
from edgellm.runtime.text.vocabulary import Vocabulary

# Lone surrogates are in no valid text, so nothing that anyone writes is taken for one of these.
_STAND_INS = range(0xDD00, 0xE000)
MARK = re.compile("[\ud800-\udbff][\udc00-\udcff]")
# In an answer, what templates themselves tell a thought from what is said by. gpt-oss' template refuses its own.
_THOUGHT = re.compile(
    r"[<\[](?!\|channel\|>)[^<>\[\]\n]{0,40}(?:think|thought|reason|channel|cot|final response)[^<>\[\]\n]{0,40}[>\]]",
    re.IGNORECASE,
)


class MarkupError(EdgellmError, ValueError):
    """A vocabulary whose control tokens cannot be kept apart from text."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Ids that stand for `start` to `end` of a rendered text."""

    start: int
    end: int
    tokens: Sequence[int]


def mark(i: int) -> str:
    """Two characters that show where message `i` went."""
    return chr(0xD800 + i // 256 % 1024) + chr(0xDC00 + i % 256)


def marked(match: re.Match[str]) -> int:
    return (ord(match.group()[0]) - 0xD800) * 256 + ord(match.group()[1]) - 0xDC00


def plain(text: str) -> str:
    """Text without lone surrogates, which no tokenizer reads."""
    return text.encode("utf-8", "replace").decode()


def thoughts(text: str) -> list[re.Match[str]]:
    """What may open or close the thought of an answer."""
    return list(_THOUGHT.finditer(text))


class Markup:
    """The spellings of a vocabulary's control tokens.

    Raises:
        MarkupError: too many different letters begin one.
    """

    def __init__(self, vocabulary: Vocabulary, reserved: frozenset[int], source: str | None = None) -> None:
        """
        Args:
            reserved: tokens that only a template may write.
            source: the template, if control tokens that look like words are control only where it spells them: it
                might make one of what someone wrote.
        """
        self.vocabulary, self.reserved = vocabulary, reserved
        # Tokenizers write these for letters that they lack.
        unknown = {vocabulary.literals.get(text) for text in ("<unk>", "[UNK]")}
        self._watched = frozenset(token for token in reserved if vocabulary.kinds[token] != "unknown") - unknown
        spellings = sorted((text for text, token in vocabulary.literals.items() if token in reserved), key=len)[::-1]
        self.pattern = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        firsts = {text[0] for text in spellings if not (text[0].isalnum() or text[0].isspace())}
        others = [text for text in spellings if text[0] not in firsts]
        words = {text for text in others if source is not None and text not in source}
        written = [text for text in spellings if text not in words]
        self._written = re.compile("|".join(map(re.escape, written)) or r"(?!)")
        letters = sorted({text[0] for text in spellings})
        self._inner: dict[str, set[str]] = {}  # what may follow the beginning of a control token, by its first letter
        for text in spellings:
            for i in range(1, len(text)):
                self._inner.setdefault(text[i], set()).add(text[i:])
        if len(letters) + 64 > len(_STAND_INS):
            raise MarkupError(f"the vocabulary's control tokens begin with {len(letters)} different letters")
        # Before any other letter, only a whole control token, or what may begin one at the very end, is dangerous.
        choices = ["[" + "".join(map(re.escape, sorted(firsts))) + "]"] if firsts else []
        choices += [f"(?={re.escape(text)})." for text in others]
        choices += [
            f"{re.escape(text[0])}(?={re.escape(text[1:n])}\\s*\\Z)" for text in others for n in range(1, len(text))
        ]
        self._dangerous = re.compile("|".join(choices) or r"(?!)", re.DOTALL)
        self._stand_ins: dict[str, str] = {}
        self._letters: dict[int, str] = {}

    def protect(self, text: str, *, is_answer: bool = False) -> str:
        """`text` letter for letter, with stand-ins; in an answer the template looks for its thought."""
        pieces, end = [], 0
        for match in thoughts(text) if is_answer else ():
            if self.vocabulary.literals.get(match.group()) not in self.vocabulary.end_tokens:
                pieces += [self._protect(text[end : match.start()]), match.group()]
                end = match.end()
        protected = "".join([*pieces, self._protect(text[end:])])
        # What a template writes before a message might be finished by how the message begins.
        begin = len(text) - len(text.lstrip())
        for at in {0, begin}:
            if at < len(text) and protected[at] == text[at] and self._may_finish(text[at:]):
                protected = protected[:at] + self._stand_in(text[at]) + protected[at + 1 :]
        return protected

    def restore(self, text: str) -> str:
        """`text` letter for letter, without stand-ins."""
        return text.translate(self._letters)

    def protect_at(self, text: str, places: Iterable[int]) -> str:
        """Protected text with more stand-ins."""
        letters = list(text)
        for place in places:
            letters[place] = self._stand_in(letters[place])
        return "".join(letters)

    def controls(self, text: str) -> list[Placed]:
        """The control tokens that a template wrote in protected text."""
        literals = self.vocabulary.literals
        return [Placed(*match.span(), (literals[match.group()],)) for match in self._written.finditer(text)]

    def encode(self, text: str, placed: Sequence[Placed] = ()) -> list[int]:
        """Ids of protected text as the engine makes them, with `placed` where they belong."""
        real = self.restore(text)
        controls = self.controls(text)
        spans = {(control.start, control.end) for control in controls}
        forged = [match.span() for match in self.pattern.finditer(real) if match.span() not in spans]
        tokens: list[int] = []
        end = first = 0
        for known in (*placed, Placed(len(text), len(text), ())):
            last = bisect_left(controls, known.start, first, key=attrgetter("start"))
            tokens += self._encode_between(real, end, known.start, controls[first:last], forged, behind_text=end > 0)
            tokens += known.tokens
            end = known.end
            first = bisect_left(controls, end, last, key=attrgetter("start"))
        return tokens

    def _protect(self, text: str) -> str:
        return self._dangerous.sub(lambda match: self._stand_in(match.group()), text)

    def _stand_in(self, letter: str) -> str:
        known = self._stand_ins.get(letter)
        if known is None:
            if len(self._stand_ins) >= len(_STAND_INS):  # letters that only begin a message
                return letter
            known = self._stand_ins[letter] = chr(_STAND_INS[len(self._stand_ins)])
            self._letters[ord(known)] = letter
        return known

    def _may_finish(self, text: str) -> bool:
        """Whether `text`, behind something else, may make or continue a control token."""
        return any(text.startswith(inner) or inner.startswith(text) for inner in self._inner.get(text[0], ()))

    def _encode_between(
        self,
        text: str,
        start: int,
        end: int,
        controls: Sequence[Placed],
        forged: Sequence[tuple[int, int]],
        *,
        behind_text: bool,
    ) -> list[int]:
        """`text` from `start` to `end`, whose control tokens are `controls`."""
        tokens: list[int] = []
        run: list[tuple[str, int | None]] = []  # text with the control token behind it
        before: int | None = None
        for control in (*controls, None):
            until = control.start if control else end
            gap, token = text[start:until], control.tokens[0] if control else None
            if (behind_text and gap) or any(first < until and last > start for first, last in forged):
                tokens += self._encode_run(run)
                run = [("", token)]
                tokens += self._encode_text(gap, before, token, spaced=not behind_text)
            else:
                run.append((gap, token))
            start, before, behind_text = control.end if control else end, token, False
        return tokens + self._encode_run(run)

    def _encode_run(self, run: list[tuple[str, int | None]]) -> list[int]:
        """Text and control tokens in one call of the engine's tokenizer, so that what it does between them is done."""
        literal = self.vocabulary.literal
        data = b"".join(
            text.encode("utf-8", "replace") + (literal(token) if token is not None else b"") for text, token in run
        )
        if not data:
            return []
        expected = [token for _, token in run if token in self._watched]
        tokens = self.vocabulary.encode_marked(data)
        if tokens is not None and [token for token in tokens if token in self._watched] == expected:
            return tokens
        tokens, before = [], None
        for text, token in run:
            tokens += self._encode_text(text, before, token, spaced=True)
            tokens += [token] if token is not None else []
            before = token
        return tokens

    def _encode_text(self, text: str, before: int | None, behind: int | None, *, spaced: bool) -> list[int]:
        """Text that holds no control token, whatever it looks like, between two that may take its white space."""
        vocabulary = self.vocabulary
        data = text.encode("utf-8", "replace")
        if before is not None and vocabulary.strips(before)[1]:
            data = data.lstrip()
        if behind is not None and vocabulary.strips(behind)[0]:
            data = data.rstrip()
        if data and spaced and vocabulary.adds_space:
            data = b" " + data
        return vocabulary.encode_leniently(data, self.reserved)
