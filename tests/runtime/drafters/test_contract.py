"""What a proposer offers, and that one more is a file and a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from fakes import PieceTokenizer, TableBackend, random_table

from edgellm.runtime.backends.base import EngineError
from edgellm.runtime.bringup.planning import DEFAULTS, EngineOptions
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters import factory
from edgellm.runtime.drafters.base import COPY, MODEL, NONE, STORE, Guess, Proposer
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.factory import Pair, build_proposer
from edgellm.runtime.drafters.failsafe import FailsafeProposer
from edgellm.runtime.drafters.model import ModelDrafter
from edgellm.runtime.drafters.retokenizers import MapRetokenizer, MergingRetokenizer, TextRetokenizer
from edgellm.runtime.drafters.translating import TranslatingDrafter
from edgellm.runtime.learning.ngrams import NgramCache
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.vocabulary import Vocabulary
from edgellm.runtime.text.vocabulary_match import match

N_VOCAB = 9
PIECES = [b"a", b"b", b" ", b"ab", b" a", b"c", b"d", b"\n", b"e"]


def vocabulary(order: Sequence[int] = range(N_VOCAB)) -> Vocabulary:
    return Vocabulary(PieceTokenizer([PIECES[i] for i in order]))


def pair(own: Vocabulary, options: EngineOptions = DEFAULTS) -> Pair:
    target = vocabulary()
    shared, cache = match(target, own), NgramCache(10**5)
    backends = [TableBackend(random_table(N_VOCAB, seed)) for seed in (1, 2)]
    return Pair(target, backends[0], None, own, backends[1], shared, None, options, lambda: cache)


def test_the_vocabularies_say_who_drafts() -> None:
    assert isinstance(build_proposer(pair(vocabulary())), ModelDrafter)
    assert isinstance(build_proposer(pair(vocabulary([3, 1, 0, 2, 4, 8, 7, 6, 5]))), TranslatingDrafter)


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [("merged", MergingRetokenizer), ("text", TextRetokenizer), ("omnidraft", MapRetokenizer), ("tli", MapRetokenizer)],
)
def test_the_options_say_how_drafts_are_retokenised(spelling: str, kind: type) -> None:
    options = EngineOptions(spelling=spelling)  # type: ignore[arg-type]
    proposer = build_proposer(pair(vocabulary([3, 1, 0, 2, 4, 8, 7, 6, 5]), options))
    assert isinstance(proposer._retokenizer, kind)  # type: ignore[attr-defined]


class Constant:
    """The least proposer: it thinks that one token follows for ever."""

    def __init__(self, pair: Pair) -> None:
        self.backend, self.engine_s = pair.backend, 0.0

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        return None

    def n_unread(self) -> int:
        return 1

    def prefill(self) -> None:
        return None

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        guesses: list[Guess] = []
        while True:
            guesses.append(Guess(4, top=0.9))
            yield guesses

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        return None

    def close(self) -> None:
        self.backend.close()


def test_another_proposer_is_a_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    line: tuple[Callable[[Pair], bool], Callable[[Pair], Proposer]] = (lambda pair: True, Constant)
    monkeypatch.setattr(factory, "BUILDERS", (line, *factory.BUILDERS))
    wanted = pair(vocabulary())
    proposer = build_proposer(wanted)
    assert isinstance(proposer, Constant)
    plain, drafted = (
        list(generate(TableBackend(random_table(N_VOCAB, 1)), drafter, [0], GREEDY, n_draft=4, max_new=40))
        for drafter in (
            AdaptiveDrafter(wanted.target_backend, None, fixed=0),
            start(AdaptiveDrafter(wanted.target_backend, None, model=proposer, fixed=4)),
        )
    )
    assert [token for step in drafted for token in step.tokens] == [token for step in plain for token in step.tokens]
    assert {step.source for step in drafted[:-2]} == {MODEL}
    assert {step.source for step in plain} == {NONE}


def start(drafter: AdaptiveDrafter) -> AdaptiveDrafter:
    drafter.begin([0])
    return drafter


def test_a_proposer_that_fails_drafts_no_more_and_is_told_once() -> None:
    class Failing(Constant):
        def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
            raise EngineError("broken")
            yield []

    told: list[str] = []
    proposer = FailsafeProposer(Failing(pair(vocabulary())), told.append)
    assert list(proposer.drafting([0], [])) == list(proposer.drafting([0], [])) == []
    assert told == ["the drafter drafts no more: broken"]
    assert proposer.n_unread() == 0


def test_the_sources_are_named_as_in_reports_that_are_out_there() -> None:
    assert (COPY, STORE, MODEL, NONE) == ("copy", "store", "model", "none")
