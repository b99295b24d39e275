"""Old answers in what a chat template wrote: how far it kept their text, and so the ids that the model generated."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgellm.runtime.text.markup import Markup, Placed, thoughts


@dataclass(slots=True)
class Kept:
    """An answer in a text that a template wrote."""

    at: int  # where its content begins
    start: int  # where what the model wrote begins
    tokens: list[tuple[int, int]] = field(default_factory=list)  # its ids as far as they spell the text, each with
    # where it ends; 0 inside of a letter
    own: dict[int, int] = field(default_factory=dict)  # where -> a control token or marker among them

    def placed(self, written: Mapping[int, int], control: frozenset[int]) -> Placed | None:
        """As far as the template wrote the same control tokens (at -> token) and no others."""
        n_kept, end = 0, self.start
        for n, (token, until) in enumerate(self.tokens, 1):
            if not until:
                continue
            wrote = [written[place] for place in range(end, until) if place in written]
            if wrote != [token] and (wrote or token in control):
                break
            n_kept, end = n, until
        tokens = [token for token, _ in self.tokens[:n_kept]]
        return Placed(self.start, end, tokens) if tokens else None


def compare(tokens: Sequence[int], content: str, text: str, at: int, markup: Markup) -> Kept:
    """The ids of an answer whose `content` begins `at` that place of `text`, as far as they spell that text.

    Bytes that are no text are read as the answer itself was: each as a replacement character.
    """
    pieces = [markup.vocabulary.literal(token) for token in tokens]
    spelled = b"".join(pieces).decode("utf-8", "replace")
    kept = Kept(at, at)
    # The last place, for a thought may say the same; the first, for an answer may end in what it begins with.
    places = {spelled.rfind(content), spelled.find(content)} if content else set[int]()
    begins = [n for n in places if 0 <= n <= at and text[at - n : at] == spelled[:n]]
    if not begins:
        return kept
    kept.start = at - max(begins)
    decoder = getincrementaldecoder("utf-8")("replace")
    end, n_whole = kept.start, 0  # n_whole: ids that end with a letter of the text
    for n, (token, piece) in enumerate(zip(tokens, pieces, strict=True), 1):
        letters = decoder.decode(piece)
        if not text.startswith(letters, end):
            break
        end += len(letters)
        if token in markup.reserved:
            kept.own[end - len(piece.decode("utf-8", "replace"))] = token
        rest = decoder.getstate()[0].decode("utf-8", "replace")
        is_whole = text.startswith(rest, end)
        kept.tokens.append((token, end + len(rest) if is_whole else 0))
        n_whole = n if is_whole else n_whole
    del kept.tokens[n_whole:]
    return kept


def only_said(content: str, text: str, kept: Kept, markup: Markup, *, has_ids: bool) -> list[int]:
    """Where an answer speaks of the markers of a thought, and has none."""
    words = content.strip()
    begin = kept.at + len(content) - len(content.lstrip())
    if not words or not text.startswith(words, begin):
        return []  # the template writes markers of its own
    found = []
    for match in thoughts(words):
        token = markup.vocabulary.literals.get(match.group())
        is_marker = not has_ids and token not in markup.vocabulary.control
        if token in markup.reserved and begin + match.start() not in kept.own and not is_marker:
            found.append(begin + match.start())
    return found
