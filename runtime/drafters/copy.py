"""Draft by copying: what followed the last time these tokens occurred in the prompt or the output.

Prompt lookup and CopySpec (arXiv:2502.08923) with the longest match instead of the first; the index grows by the new
tokens alone, over the full sequence, so matches across the border of two rounds are found.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.drafters.base import Draft
from edgellm.runtime.sampling import GREEDY, Sampling

MIN_MATCH = 3  # tokens; shorter matches are noise
MAX_MATCH = 32  # tokens; longer ones are all as good
MAX_PLACES = 8  # of one key that are compared, newest first


class CopyDrafter:
    """Proposes the continuation of the longest earlier occurrence of the last tokens."""

    busy_s = 0.0

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}  # last MIN_MATCH tokens -> positions right behind them

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        n_same = len(self._tokens)
        if list(prompt[:n_same]) != self._tokens:
            self._tokens.clear()
            self._places.clear()
            n_same = 0
        self.observe(prompt, len(prompt) - n_same)

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        self._tokens += tokens[len(tokens) - n_new :]
        known = self._tokens
        for end in range(max(len(known) - n_new, MIN_MATCH), len(known)):
            places = self._places.setdefault(tuple(known[end - MIN_MATCH : end]), [])
            places.append(end)
            if len(places) > MAX_PLACES:
                del places[0]

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        if limit <= 0:
            return Draft()
        known = self._tokens
        best, best_match = -1, 0
        for place in reversed(self._places.get(tuple(known[-MIN_MATCH:]), ())):
            match = MIN_MATCH
            while match < MAX_MATCH and match < place and known[place - 1 - match] == known[-1 - match]:
                match += 1
            if match > best_match:
                best, best_match = place, match
        return Draft(known[best : best + limit], source="copy") if best >= 0 else Draft()

    def close(self) -> None:
        return None
