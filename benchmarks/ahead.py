"""Drafting while the target verifies, on a model of two devices: passes that take a given time and compute elsewhere.

    python benchmarks/ahead.py [--target-ms 40] [--token-ms 4] [--draft-ms 12] [--agreement 0.8] [--tokens 200]

The target's pass takes `target-ms`, and `token-ms` more for each further token; one of the drafter `draft-ms`, and a
twentieth more for each further token that it reads. They say the same with the given probability. Printed: tokens a
second without drafting, with every fixed length and with the controller's own, each with and without overlap, and how
much of what was drafted ahead was used.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

from edgellm.runtime.backends.base import Logits
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.ahead import AheadProposer
from edgellm.runtime.drafters.base import Drafter, NoDrafter, Proposer
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.learning.costs import CostCurve, Costs
from edgellm.runtime.sampling import GREEDY

N_VOCAB, MAX_OUTPUTS = 64, 16
LENGTHS = (1, 2, 3, 4, 6, 8)


class Device:
    """A backend whose next token follows from the last three, and whose passes take their time without a core."""

    def __init__(self, first_s: float, token_s: float, *, errs: float = 0.0) -> None:
        self.first_s, self.token_s, self.errs = first_s, token_s, errs
        self.n_vocab, self.n_ctx, self.max_outputs, self.can_shift = N_VOCAB, 1 << 20, MAX_OUTPUTS, True
        self.engine_s = 0.0
        self.tokens: list[int] = []

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        self.tokens += tokens
        if n_outputs:
            took_s = self.first_s + self.token_s * (len(tokens) - 1)
            time.sleep(took_s)
            self.engine_s += took_s
        rows = np.zeros((n_outputs, N_VOCAB), np.float32)
        for i, row in enumerate(rows):
            end = len(self.tokens) - n_outputs + i + 1
            held = tuple(self.tokens[max(0, end - 3) : end])
            rng = np.random.default_rng(abs(hash(held)))
            right, wrong, luck = int(rng.integers(N_VOCAB)), int(rng.integers(N_VOCAB)), float(rng.random())
            row[wrong if luck < self.errs else right] = 8.0
        return rows

    def truncate(self, length: int) -> None:
        del self.tokens[max(0, length) :]

    def forget_oldest(self, n: int) -> None:
        del self.tokens[:n]

    def close(self) -> None:
        return None


def speed(arguments: argparse.Namespace, fixed: int | None, ahead: bool) -> tuple[float, str]:
    """Tokens a second, and what became of the work ahead."""
    target = Device(arguments.target_ms / 1e3, arguments.token_ms / 1e3)
    draft = Device(arguments.draft_ms / 1e3, arguments.draft_ms / 2e4, errs=1.0 - arguments.agreement)
    drafter: Drafter = NoDrafter()
    proposer: Proposer = ModelDrafter(draft)
    if fixed != 0:
        proposer = AheadProposer(proposer) if ahead else proposer
        widths = tuple(range(1, MAX_OUTPUTS + 1))
        curve = CostCurve(widths, (0,), [[target.first_s + target.token_s * (n - 1) for n in widths]])
        reading = [draft.first_s + draft.token_s * (n - 1) for n in (1, 64)]
        costs = Costs(curve, CostCurve((1, 64), (0,), [reading]))
        drafter = AdaptiveDrafter(target, costs, model=proposer, fixed=fixed, passes_per_token=1.0)
    rate = 0.0
    for prompt in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):  # the last counts: by then it is known who is to be believed
        target.truncate(0)
        drafter.begin(prompt)
        began, n = time.perf_counter(), 0
        for each in generate(target, drafter, prompt, GREEDY, n_draft=fixed or 15, max_new=arguments.tokens):
            n += len(each.tokens)
        rate = n / (time.perf_counter() - began)
    said = proposer.explain() if isinstance(proposer, AheadProposer) else ""
    if fixed is None and isinstance(drafter, AdaptiveDrafter):
        said = drafter.explain()
    drafter.close()
    return rate, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target-ms", type=float, default=40.0)
    parser.add_argument("--token-ms", type=float, default=4.0)
    parser.add_argument("--draft-ms", type=float, default=12.0)
    parser.add_argument("--agreement", type=float, default=0.8)
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    plain, _ = speed(arguments, 0, False)
    print(f"plain {plain:.1f} tokens/s\n\n| drafts of | one after the other | overlapped | |\n|---|---|---|---|")
    best = [0.0, 0.0]
    for fixed in (*LENGTHS, None):
        after, (over, said) = speed(arguments, fixed, False)[0], speed(arguments, fixed, True)
        if fixed is not None:
            best = [max(best[0], after), max(best[1], over)]
        print(f"| {fixed or 'by the controller'} | {after:.1f} | {over:.1f} | {said} |")
    print(f"\nbest fixed: {best[0]:.1f} and {best[1]:.1f}")


if __name__ == "__main__":
    main()
