"""Looking for drafts rests where it takes more than it saves, and nothing that was said is missed."""

from __future__ import annotations

from fakes import TableBackend, alone, random_table

from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.resting import Resting
from edgellm.runtime.learning.costs import Costs, assumed
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.sampling import GREEDY


def n_looked(resting: Resting, n_rounds: int, saved_s: float, took_s: float, plain_s: float) -> int:
    """Of so many rounds, each of which saves and takes the same."""
    n = 0
    for _ in range(n_rounds):
        if not resting.rests():
            resting.observe(saved_s, took_s, plain_s)
            n += 1
    return n


def test_it_rests_where_it_saves_less_than_it_takes_and_that_is_felt() -> None:
    assert n_looked(Resting(), 800, 0.0, 2e-4, 3e-3) < 150
    assert n_looked(Resting(), 800, 0.0, 2e-4, 5e-2) == 800  # less than a hundredth of a pass
    assert n_looked(Resting(), 800, 1e-3, 2e-4, 3e-3) == 800


def test_a_gain_wakes_it() -> None:
    resting = Resting()
    n_looked(resting, 400, 0.0, 2e-4, 3e-3)
    while resting.rests():
        pass
    resting.observe(2e-2, 2e-4, 3e-3)
    assert not resting.rests()


def test_what_was_said_while_it_rested_is_known_afterwards() -> None:
    """Passes that take next to nothing, of which wider ones are dear: nearly all rounds rest."""
    target = TableBackend(random_table(50, 3), max_outputs=8)
    index = NgramIndex(4096)
    drafter = AdaptiveDrafter(target, Costs(assumed(1e-6, 5.0), None), conversation=index)
    drafter.begin([1, 2, 3])
    tokens = [1, 2, 3]
    for one in generate(target, alone(drafter), tokens, GREEDY, n_draft=7, max_new=300):
        tokens += one.tokens
    assert drafter._resting._n_seen < 150  # of 300 rounds
    drafter.close()
    assert index.tokens().tolist() == tokens
