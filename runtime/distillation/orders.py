"""What the children are asked for and what they answer: plain values, which travel as JSON. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

TALKING = "edgellm.runtime.distillation.talk_job"  # the programs
TRAINING = "edgellm.runtime.distillation.job"
KEPT_EVERY_S = 120.0  # between the states that a killed training goes on from
# The trainer has threads of its own, and each of its products is small. Read when numpy is imported.
ENVIRONMENT = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL", "VECLIB", "BLIS")}


@dataclass(frozen=True, slots=True)
class TalkOrder:
    """A target is to answer questions until there are lessons enough."""

    target: str  # its file
    target_name: str
    learned: str  # the folder of lessons
    n_tokens: int  # of answers that are new to the drafter: so many are wanted in all
    seconds: float  # to take at most, while it is let run
    n_threads: int
    adapter: str | None = None  # of the drafter: the lessons that it learnt from are not new
    prompts: str | None = None  # a file of questions; None: the target's own
    mem_bytes: int | None = None  # to take at most; None: what the machine has free

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """A drafter is to learn from its target's lessons."""

    target: str  # files
    draft: str
    target_name: str
    draft_name: str
    target_key: str  # see `adopted.target_key`
    learned: str  # folders: of lessons
    adopted: str  # of adapters
    seconds: float  # to take at most, while it is let run
    n_threads: int
    adapter: str | None = None  # the file of the one that the drafter goes with now
    mem_bytes: int | None = None  # to take at most; None: what the machine has free
    output: str | None = None  # where the adapter is written as well, adopted or not
    niceness: int = 10  # 19: only what nobody else wants
    kept_every_s: float = KEPT_EVERY_S

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a training."""

    adopted: bool
    why: str  # a sentence
    reason: str = ""  # what ended it: "learnt", "levelled off", "time", "stopped"; "" where it did not begin
    comparison: Mapping[str, Any] | None = None  # with the drafter before, on answers never learnt from
    n_lessons: int = 0  # that there are
    n_taught: int = 0  # of them learnt from
    n_tokens: int = 0  # their answers', in the drafter's tokens
    n_judged: int = 0  # answers that judged
    seconds: float = 0.0
    path: str | None = None  # the drafter that is used from now on
    output: str | None = None
    taken_back: str | None = None  # why what was learnt before is not used any more

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def telling_failures(send: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
    """What a child sends of failures that its parent raises again as what they are: no room, and the disk's."""
    from edgellm.memory.errors import EdgellmError
    from edgellm.memory.plan import DoesNotFit

    try:
        yield
    except DoesNotFit as error:
        send({"does_not_fit": str(error)})
    except OSError as error:
        if isinstance(error, EdgellmError) or error.errno is None:
            raise
        send({"errno": error.errno, "strerror": error.strerror, "filename": error.filename})
