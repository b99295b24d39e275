"""Several drafters as one: the first that has something to say is heard."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.drafters.base import Draft, Drafter
from edgellm.runtime.sampling import GREEDY, Sampling


class ChainDrafter:
    """Cheap drafters first: a copy costs nothing, a model's token costs a forward pass."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self._drafters = list(drafters)

    @property
    def busy_s(self) -> float:
        return sum(drafter.busy_s for drafter in self._drafters)

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        for drafter in self._drafters:
            drafter.begin(prompt, own_prompt=own_prompt, sampling=sampling)

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        for drafter in self._drafters:
            draft = drafter.propose(tokens, limit)
            if draft.tokens:
                return draft
        return Draft()

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        for drafter in self._drafters:
            drafter.observe(tokens, n_new)

    def close(self) -> None:
        for drafter in self._drafters:
            drafter.close()
