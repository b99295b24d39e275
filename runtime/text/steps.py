"""What a chat template computes, counted in steps: one for a filter or an item of a loop, some for a call, and one for
every `CHARS_A_STEP` characters that are made or looked at. What would be large is refused before it is made.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import GeneratorType
from typing import Any

from edgellm.memory.errors import EdgellmError

MAX_STEPS = 500_000
STEPS_A_PAIR = 4  # of messages: some templates go over all of them for every one
CALL_STEPS = 5
CHARS_A_STEP = 32
MAX_CHARS = 2_000_000  # of any one text, beyond what it was given
MAX_NUMBER = 100_000  # that a width, a count or an indent may be
MAX_BITS = 4096  # of a number that is multiplied
MAX_SEPARATOR = 100  # characters that go between items

_SLOW_FILTERS = frozenset(["urlize", "wordwrap", "striptags", "pprint", "sort", "unique", "groupby", "dictsort"])
_QUICK_FILTERS = frozenset(["count", "d", "default", "first", "last", "length"])
_DEEP_FILTERS = frozenset(["tojson", "string", "pprint", "join", "unique", "groupby", "sort", "dictsort", "sum"])
_COUNTING_FILTERS = frozenset(["batch", "center", "indent", "round", "slice", "truncate", "wordwrap"])
_FREE_METHODS = frozenset(["count", "find", "get", "index", "rfind", "rindex", "split", "rsplit", "startswith"])
_LISTS: tuple[type[Any], ...] = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    range,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_SIZED: tuple[type[Any], ...] = (str, bytes, *_LISTS)
_DIGITS = re.compile(r"[0-9]+")


class TemplateError(EdgellmError, ValueError):
    """A chat template that cannot be used; the message says why."""


class Steps:
    """What is left of them."""

    def __init__(self, n_given: int) -> None:
        self.max_chars = MAX_CHARS + 4 * n_given
        self.left = MAX_STEPS + n_given  # templates go over what they are given several times

    def take(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise TemplateError("the model's chat template does more than a chat template has to do")

    def make(self, n_chars: int) -> None:
        """Before a text of that many characters, or a list of that many items, is made."""
        if n_chars > self.max_chars:
            raise TemplateError(f"the model's chat template writes more than {self.max_chars:,} characters")
        self.take(1 + n_chars // CHARS_A_STEP)


_steps: ContextVar[Steps] = ContextVar("steps")


def current() -> Steps:
    """Of the template that runs."""
    return _steps.get()


@contextlib.contextmanager
def counted(failing: str, n_given: int) -> Iterator[Steps]:
    """Turn whatever a template does wrong into a TemplateError."""
    steps = Steps(n_given)
    token = _steps.set(steps)
    try:
        yield steps
    except TemplateError:
        raise
    except Exception as error:  # a template can raise anything
        said = str(error) or type(error).__name__
        raise TemplateError(f"the model's chat template {failing}: {said[:500]}") from error
    finally:
        _steps.reset(token)


def items(value: Any) -> Any:
    """What a loop goes over, counted."""
    steps = current()
    if isinstance(value, _SIZED):
        steps.take(1 + len(value))
        return value
    return _one_by_one(value) if isinstance(value, Iterator) else value


def _one_by_one(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        current().take(1)
        yield value


def looked_at(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        current().take(len(value) // CHARS_A_STEP)
    elif isinstance(value, _LISTS):
        _deep_size(value)
    return value


def made(value: Any) -> Any:
    if isinstance(value, _SIZED):
        current().take(1 + len(value) // CHARS_A_STEP)
    return value


def joined(values: list[Any]) -> str:
    texts = [str(check_written(value)) for value in values]
    current().make(sum(map(len, texts)))
    return "".join(texts)


def check_written(value: Any) -> Any:
    """A value that is turned to text. Lists of lists of lists may be far larger written than they are."""
    if isinstance(value, str):
        current().take(len(value) // CHARS_A_STEP)
    elif isinstance(value, (bytes, *_LISTS)):
        current().make(_deep_size(value))
    return value


def _deep_size(value: Any) -> int:
    """Characters and items of a value as it would be written; each item is a step."""
    steps, n_chars, waiting = current(), 0, [value]
    while waiting:
        value = waiting.pop()
        steps.take(1)
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
        elif isinstance(value, (str, bytes)):
            n_chars += len(value)
        n_chars += 2
        if n_chars > steps.max_chars or len(waiting) > steps.left:
            steps.make(max(n_chars, steps.max_chars + 1))
    return n_chars


def check_operation(operator: str, left: Any, right: Any) -> None:
    steps = current()
    steps.take(1)
    if operator == "+":
        if isinstance(left, _SIZED) and isinstance(right, _SIZED):
            steps.make(len(left) + len(right))
    elif operator == "%":
        if isinstance(left, (str, bytes)):
            _check_format(str(left), right if isinstance(right, (tuple, list, dict)) else (right,))
    elif isinstance(left, int) and isinstance(right, int):
        n_bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if n_bits > MAX_BITS:
            raise TemplateError("the model's chat template calculates with huge numbers")
    elif operator == "*":
        for many, n in ((left, right), (right, left)):
            if isinstance(many, _SIZED) and isinstance(n, int):
                steps.make(len(many) * max(0, n))


def check_method(called: Any, given: list[Any], named: Mapping[str, Any]) -> None:
    """Before a method of a built-in value is called: how much it may make."""
    owner, name, steps = getattr(called, "__self__", None), getattr(called, "__name__", ""), current()
    if not isinstance(owner, (str, bytes, int, float, list, tuple, dict, range)):
        return
    values = [*given, *named.values()]
    n_own = len(owner) if isinstance(owner, _SIZED) else 1
    steps.take(n_own // CHARS_A_STEP)
    if name not in _FREE_METHODS and not (isinstance(owner, str) and name in ("format", "format_map")):
        for value in values:
            _check_number(value)
    if isinstance(owner, (list, tuple, dict, range)):
        steps.take(n_own if name in ("index", "count", "copy") else 0)
    elif isinstance(owner, (str, bytes)):
        if name in ("format", "format_map"):
            _check_format(str(owner), values)
        elif name == "join":
            given[:] = [_check_join(n_own, given[0])] if given else []
        elif name == "replace" and len(given) > 1:
            _check_replace(owner, given[0], given[1])
        elif name == "expandtabs":
            steps.make(n_own * (1 + max([8, *(value for value in values if isinstance(value, int))])))
        elif name == "translate":
            longest = [len(value) for table in given if isinstance(table, dict) for value in table.values() if value]
            steps.make(n_own * max([1, *longest]))


def _check_number(value: Any) -> None:
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise TemplateError(f"the model's chat template asks for a width or a count of {value:,}")


def _check_format(pattern: str, values: Iterable[Any]) -> None:
    """Before `%` or `format`: no wide fields, none whose width is itself a value."""
    if any(len(digits) > 5 for digits in _DIGITS.findall(pattern)) or re.search(r"%[^a-zA-Z%]*\*|:[^}]*\{", pattern):
        raise TemplateError("the model's chat template formats very wide text")
    if isinstance(values, dict):
        values = values.values()
    n_fields = 1 + pattern.count("%") + pattern.count("{")
    longest = max([_written_length(value) for value in values] or [0])
    widths = sum(int(digits) for digits in _DIGITS.findall(pattern))
    current().make(len(pattern) + widths + n_fields * longest)


def _written_length(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    return _deep_size(value) if isinstance(value, _LISTS) else 32


def _check_join(n_separator: int, values: Any) -> Any:
    listed = list(items(values)) if isinstance(values, Iterable) and not isinstance(values, str) else values
    if isinstance(listed, list):
        n_chars = sum(len(value) if isinstance(value, str) else 1 for value in listed)
        current().make(n_chars + n_separator * len(listed))
    return listed


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, (str, bytes)) and isinstance(old, type(text)) and isinstance(new, _SIZED):
        current().make(len(text) + text.count(old) * len(new))  # type: ignore[arg-type]


def counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def count(*args: Any, **kwargs: Any) -> Any:
        steps = current()
        steps.take(1)
        values = [*args, *kwargs.values()]
        for value in values:
            if isinstance(value, _SIZED):
                n = len(value) * (0 if name in _QUICK_FILTERS else 20 if name in _SLOW_FILTERS else 1)
                steps.take(n // CHARS_A_STEP if isinstance(value, str) else n)
                if name in _DEEP_FILTERS:
                    check_written(value)
            elif name in _COUNTING_FILTERS:
                _check_number(value)
        _check_filter(name, args, kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, GeneratorType):
            return _one_by_one(result)
        return made(result)

    return count


def _check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    texts = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str)]
    if name == "format":
        _check_format(str(args[0]), [*args[1:], *kwargs.values()])
    elif name == "replace" and len(args) > 3:  # the evaluation context comes first
        _check_replace(str(args[1]), str(args[2]), str(args[3]))
    elif name == "indent" and args:
        width = max([0, *(len(text) for text in texts), *(v for v in args[1:] if isinstance(v, int))])
        current().make((str(args[0]).count("\n") + 1) * (width + 1))
    elif name == "join":
        text = [value for value in (*args[2:], *kwargs.values()) if isinstance(value, str)]
        if len(args) > 1 and not isinstance(args[1], str) and any(len(value) > MAX_SEPARATOR for value in text):
            raise TemplateError("the model's chat template writes very much between its items")
    elif name in ("wordwrap", "truncate", "urlize") and any(len(text) > MAX_NUMBER for text in texts):
        raise TemplateError("the model's chat template wraps very long text")


def counted_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def count(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            if isinstance(value, _SIZED) and len(args) > 1:
                looked_at(value)
        current().take(1)
        return function(*args, **kwargs)

    return count
