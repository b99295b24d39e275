"""Which proposer drafts for a pair. A new one is a file beside this one, and a line in `BUILDERS`.

One with a head that is trained on the target's hidden states (Medusa, arXiv:2401.10774) suits pairs whose
`target_backend` is a `HiddenStates`, wants them there, and reads those of the verified tokens in `observe`. A head that
llama.cpp runs itself (MTP) is a backend that has them already: see `head.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgellm.runtime.backends.base import Backend
from edgellm.runtime.backends.llama_nextn import LlamaHead
from edgellm.runtime.backends.llama_process import engine_name
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.drafters.base import Proposer
from edgellm.runtime.drafters.head import HeadDrafter
from edgellm.runtime.drafters.model import REACH, ModelDrafter
from edgellm.runtime.drafters.retokenizers import MapRetokenizer, MergingRetokenizer, Retokenizer, TextRetokenizer
from edgellm.runtime.drafters.translating import TranslatingDrafter
from edgellm.runtime.learning.ngrams import NgramCache
from edgellm.runtime.text.vocabulary import Vocabulary
from edgellm.runtime.text.vocabulary_map import VocabularyMap
from edgellm.runtime.text.vocabulary_match import Match


@dataclass(frozen=True, slots=True)
class Pair:
    """What a proposer may be built from."""

    target: Vocabulary
    target_backend: Backend
    turn_end: int | None  # what the target writes at the end of a turn
    own: Vocabulary  # the draft model's
    backend: Backend  # likewise
    match: Match
    table: VocabularyMap | None  # stored beside the draft model
    options: EngineOptions
    ngrams: Callable[[], NgramCache]  # what the pair has learnt of the two vocabularies


def build_proposer(pair: Pair) -> Proposer:
    """The first proposer that the pair suits."""
    return next(build for suits, build in BUILDERS if suits(pair))(pair)


def _same_vocabulary(pair: Pair) -> Proposer:
    return ModelDrafter(pair.backend, pair.match.different, REACH)


def _any_vocabulary(pair: Pair) -> Proposer:
    cache = pair.ngrams()
    return TranslatingDrafter(
        pair.backend,
        pair.own,
        pair.target,
        pair.turn_end,
        retokenizer=_retokenizer(pair, cache),
        cache=cache,
        shared_only=pair.options.spelling == "tli",
        reach=REACH,
        merged_probs=pair.options.merged_probs,
    )


def _retokenizer(pair: Pair, cache: NgramCache) -> Retokenizer:
    own, target, options = pair.own, pair.target, pair.options
    if options.spelling == "merged":
        return MergingRetokenizer(own, target, cache)
    if options.spelling == "text":
        return TextRetokenizer(own, target)
    retokenizer = MapRetokenizer(own, target, cache if options.spelling == "omnidraft" else None)
    if options.warm_start and not cache.n_learnt:
        table = pair.table or VocabularyMap.build(target, own, target_key="", draft_key="", engine=engine_name())
        cache.seed(table.spellings())  # by the target's ids: those of byte-pair merges begin with the commonest
    return retokenizer


def _head(pair: Pair) -> Proposer:
    assert isinstance(pair.backend, LlamaHead)
    return HeadDrafter(pair.backend)


BUILDERS: tuple[tuple[Callable[[Pair], bool], Callable[[Pair], Proposer]], ...] = (
    (lambda pair: isinstance(pair.backend, LlamaHead), _head),
    (lambda pair: pair.match.same, _same_vocabulary),
    (lambda pair: True, _any_vocabulary),
)
