"""What the controller did and why, for a reader."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from edgellm.runtime.drafters.acceptance import Acceptance
from edgellm.runtime.drafters.base import GoesAhead, Proposer
from edgellm.runtime.drafters.economics import Economics


@dataclass(slots=True)
class Choices:
    """What was chosen and what it cost, for whoever wants to know why."""

    n_rounds: int = 0
    n_drafted: int = 0
    n_passes: int = 0  # of the draft model
    rounds_by: Counter[str] = field(default_factory=Counter)  # sources of the proposal, joined by +
    n_probes: int = 0
    overhead_s: float = 0.0  # of looking up, choosing and learning, without the models and the retokenising


def explain(choices: Choices, economics: Economics, acceptance: Acceptance, model: Proposer | None) -> str:
    """One sentence: who drafted how much, what passes cost, and whether the draft model pays."""
    if not choices.n_rounds:
        return "nothing was drafted yet"
    share = {name: n / choices.n_rounds for name, n in choices.rounds_by.most_common(3)}
    who = ", ".join(f"{name} in {part:.0%} of rounds" for name, part in share.items())
    text = f"drafts of {choices.n_drafted / choices.n_rounds:.1f} tokens on average ({who})"
    table = economics.table
    if economics.costs is None or not table:
        return text
    wide = min(4, len(table) - 1)
    text += f": a pass of the target takes {1e3 * table[0]:.0f} ms, over {wide + 1} tokens {1e3 * table[wide]:.0f} ms"
    if economics.costs.draft is not None:
        n_unread = model.n_unread() if model is not None else 1
        text += f", one of the draft model {1e3 * economics.costs.draft(1):.0f} ms, and "
        text += _of_model(economics, acceptance, n_unread)
    if isinstance(model, GoesAhead):
        text += f"; {model.explain()}"
    return text


def _of_model(economics: Economics, acceptance: Acceptance, n_unread: int) -> str:
    asked = acceptance.of_model.n_ever > 0
    text = f"{acceptance.of_model.value:.0%} of its tokens are accepted" if asked else "it was not asked yet"
    known = (acceptance.hoped, acceptance.passes_per_token)
    if economics.model_pays(0, n_unread, *known):
        return text + ", so it pays"
    if economics.model_pays(0, 1, *known):
        return text + ": it would pay, but not for what it has to read first"
    return text + (", so it does not pay" if asked else ": it is too slow to pay")
