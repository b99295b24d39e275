"""When looking for drafts costs more time than they save: short passes, of which wider ones are dear.

Looking up, weighing and learning take a fraction of a millisecond a round. Beside a pass of 50 ms on a processor that
is nothing; beside one of 3 ms on a large GPU it is a twentieth. There it is done in one round of a few alone, as long
as what it brings is less.
"""

from __future__ import annotations

_N_FIRST = 32  # rounds before the first judgement
_N_REST = 7  # rounds that rest behind each that looks
_FELT = 0.01  # of a plain pass, which the looking must take before it is saved
_STEP = 0.03  # weight of a round in the running means: a half-life of 23


class Resting:
    """Told of each round that looked for drafts what it saved and took; says which rounds rest."""

    def __init__(self) -> None:
        self.saved_s = self.took_s = 0.0  # a round, lately
        self._n_seen = self._n_left = 0

    def rests(self) -> bool:
        """Whether the next round does; asked once a round."""
        if not self._n_left:
            return False
        self._n_left -= 1
        return True

    def observe(self, saved_s: float, took_s: float, plain_s: float) -> None:
        """A round that looked is over.

        Args:
            saved_s: against so many plain passes; negative where it lost.
            took_s: looking, weighing and learning.
            plain_s: a pass of the target over one token.
        """
        self._n_seen += 1
        step = max(_STEP, 1.0 / self._n_seen)
        self.saved_s += step * (saved_s - self.saved_s)
        self.took_s += step * (took_s - self.took_s)
        is_felt = self._n_seen >= _N_FIRST and self.took_s > _FELT * plain_s
        self._n_left = _N_REST if is_felt and self.saved_s < self.took_s else 0
