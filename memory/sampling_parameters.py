"""What can be set about sampling: the table that options, `/set`, JSON and the documentation are made from.

Nothing heavy is imported here, so that `--help` can read the table; `runtime/sampling.py` says what the values do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

from edgellm.memory.errors import USAGE, EdgellmError

_NONE = "none"
_KINDS: dict[str, type[int] | type[float]] = {"int": int, "float": float}
_WORDS = {int: "a whole number", float: "a number"}


class BadSampling(EdgellmError, ValueError):
    """A sampling parameter that there is not, or a value out of its range."""

    exit_code = USAGE


class Parameter(NamedTuple):
    """One parameter. Its values are numbers, from `low` to `high`, and None where it is `optional`."""

    name: str
    kind: type[int] | type[float]
    optional: bool
    default: int | float | None
    low: float
    high: float
    help: str
    metavar: str
    option: str  # the name of its command-line option, as typed; `/set` and JSON use `name`, `/set` takes both
    short: str | None
    stands_for_none: int | None  # a number that people write for None

    def check(self, value: Any) -> Any:
        """`value`, as its type.

        Raises:
            BadSampling: it is of another type, or out of range.
        """
        if value is None and self.optional:
            return None
        is_number = isinstance(value, Real if self.kind is float else Integral) and not isinstance(value, bool)
        if not is_number:
            or_none = " or null" if self.optional else ""
            raise BadSampling(f"{self.name} must be {_WORDS[self.kind]}{or_none}, not {value!r}")
        if not self.low <= value <= self.high:
            to = f"{self.low:g} or more" if self.high == math.inf else f"{self.low:g} to {self.high:g}"
            to += "" if self.stands_for_none is None else f", or {self.stands_for_none} for none"
            raise BadSampling(f"{self.name} {value} is out of range: {to}")
        return int(value) if self.kind is int else float(value)

    def said(self, value: Any) -> Any:
        """`check` of a number as people give it: the one that stands for None is None."""
        return None if value is not None and value == self.stands_for_none else self.check(value)

    def read(self, text: str) -> Any:
        """The value of a text, as `/set` has it.

        Raises:
            BadSampling: out of range.
            ValueError: no number.
        """
        if self.optional and text.casefold() == _NONE:
            return None
        return self.said(self.kind(text))


def _parameter(
    default: Any,
    help: str,
    *,
    low: float,
    high: float = math.inf,
    metavar: str = "N",
    option: str | None = None,
    short: str | None = None,
    stands_for_none: int | None = None,
) -> Any:
    told = {"default": default, "low": low, "high": high, "help": help, "metavar": metavar, "option": option}
    told |= {"short": short, "stands_for_none": stands_for_none}
    return dataclasses.field(default=default, metadata=told)


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen. The default is greedy.

    A new parameter is one entry here and, in `runtime/sampling.py`, a stage that reads it.
    """

    temperature: float = _parameter(0.0, "0 is greedy.", low=0, high=100, metavar="T", option="temp", short="-t")
    top_n_sigma: float = _parameter(0.0, "0 keeps all.", low=0, high=100)  # standard deviations of the logits
    top_k: int = _parameter(40, "0 keeps all.", low=0, high=10**9, metavar="K")
    top_p: float = _parameter(0.95, "1 keeps all.", low=1e-9, high=1, metavar="P")
    min_p: float = _parameter(0.05, "0 keeps all.", low=0, high=1, metavar="P")
    # Keskar et al. 2019, arXiv:1909.05858
    repeat_penalty: float = _parameter(1.0, "1 is off.", low=1e-9, high=100, metavar="X")
    repeat_last_n: int = _parameter(64, "Tokens that penalties look back.", low=0, high=10**9)
    # OpenAI's two, subtracted from the logit of what occurred: once, and for each time.
    presence_penalty: float = _parameter(0.0, "0 is off.", low=-2, high=2, metavar="X")
    frequency_penalty: float = _parameter(0.0, "0 is off.", low=-2, high=2, metavar="X")
    seed: int | None = _parameter(
        None, "Same seed, same answer; another one each time if -1 or not given.", low=0, stands_for_none=-1
    )

    def __post_init__(self) -> None:
        for parameter in PARAMETERS.values():
            parameter.check(getattr(self, parameter.name))

    def to_json(self) -> dict[str, Any]:
        """Every parameter by name."""
        return {name: getattr(self, name) for name in PARAMETERS}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The parameters of an object that names some of them; the others have their defaults.

        Raises:
            BadSampling: a name is none of them, or a value is of another type or out of range.
        """
        if not isinstance(values, Mapping):
            raise BadSampling(f"sampling must be an object of parameters, not {values!r}")
        return cls(**{parameter(name).name: parameter(name).said(value) for name, value in values.items()})


def parameter(name: str) -> Parameter:
    """The parameter of a name.

    Raises:
        BadSampling: there is none; the message offers what was meant.
    """
    if name not in PARAMETERS:
        import difflib

        near = difflib.get_close_matches(name, PARAMETERS, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PARAMETERS)}"
        raise BadSampling(f"there is no sampling parameter {name}: {hint}")
    return PARAMETERS[name]


def _row(field: dataclasses.Field[Any]) -> Parameter:
    kind, _, none = str(field.type).partition(" | ")
    told = dict(field.metadata)
    told["option"] = told["option"] or field.name.replace("_", "-")
    return Parameter(field.name, _KINDS[kind], bool(none), **told)


PARAMETERS: dict[str, Parameter] = {field.name: _row(field) for field in dataclasses.fields(SamplingParameters)}
