"""Answers that judge a drafter: as many of the newest as there is time for, read before it learns and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgellm.memory.errors import EdgellmError
from edgellm.memory.quantised import Floats
from edgellm.runtime.distillation.curriculum import Named, n_tokens_of, newest, samples_of
from edgellm.runtime.distillation.judging import MIN_ANSWERS, Comparison, Hits, SupportsAgreement, compare, hits_of
from edgellm.runtime.distillation.lesson import Sample
from edgellm.runtime.distillation.watching import Trainable, zeroed

SHARE = 0.1  # of the time of a training, that reading the answers that judge may take, each time


class Stopped(EdgellmError, RuntimeError):
    """The parent wants an end while a drafter is judged."""


class _Stoppable:
    """A network that says no more once an end is wanted."""

    def __init__(self, network: SupportsAgreement, stop_asked: Callable[[], bool]) -> None:
        self._network, self._stop_asked = network, stop_asked

    def agreement(self, samples: Sequence[Sample]) -> list[Hits]:
        if self._stop_asked():
            raise Stopped("it was stopped while the drafter was judged")
        return self._network.agreement(samples)


class Trial:
    """`judging` are the answers that judge; `tokens_per_s` is how fast they are read, prompts included."""

    def __init__(
        self,
        network: Trainable,
        judging: Sequence[Named],
        *,
        n_threads: int,
        seconds: float,
        clock: Callable[[], float],
        stop_asked: Callable[[], bool],
    ) -> None:
        """
        Args:
            judging: all that there are, the newest last.
            seconds: of the training as a whole.

        Raises:
            Stopped, here and in `hits`.
        """
        self._network, self._n_threads, self._room_s = network, n_threads, SHARE * seconds
        self._asked = _Stoppable(network, stop_asked)
        few, began_s = list(judging[-MIN_ANSWERS:]), clock()
        hits_of(self._asked, samples_of(few), n_threads)
        self.tokens_per_s = n_tokens_of(few) / max(clock() - began_s, 1e-3)
        room = self._fitting(judging, self._room_s)
        self.judging = room if len(room) >= MIN_ANSWERS else few

    @property
    def seconds(self) -> float:
        """That reading them once takes."""
        return n_tokens_of(self.judging) / self.tokens_per_s

    def _fitting(self, named: Sequence[Named], seconds: float) -> list[Named]:
        """The newest that can be read in a time."""
        return newest(named, int(seconds * self.tokens_per_s))

    def of_use(self, changes: Mapping[str, Floats], newer: Sequence[Named]) -> Comparison:
        """What training brought by then, by as many of the answers since as there is time for. Raises Stopped."""
        fitting = samples_of(self._fitting(newer, self._room_s / 2))
        return judge_in_use(self._network, changes, fitting, self._n_threads)

    def hits(self) -> list[Hits]:
        return hits_of(self._asked, samples_of(self.judging), self._n_threads)

    def plain_hits(self) -> list[Hits]:
        """Of the file as it is; the network is left as it was."""
        now = self._network.changes()
        self._network.take(zeroed(now))
        try:
            return self.hits()
        finally:
            self._network.take(now)


def judge_in_use(
    network: Trainable, changes: Mapping[str, Floats], newer: Sequence[Sample], n_threads: int = 1
) -> Comparison:
    """What training brought, by answers that came after it: the plain drafter (old) against the one in use (new).

    The network is left as the one in use.
    """
    network.take(zeroed(changes))
    plain = hits_of(network, newer, n_threads)
    network.take(changes)
    return compare(plain, hits_of(network, newer, n_threads))
