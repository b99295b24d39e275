"""Jinja as transformers sets it up for chat templates, in a sandbox whose work is counted.

A template comes with a model's file and may be hostile. What it computes is counted in steps: one for a filter or an
item of a loop, some for a call, and one for every `CHARS_A_STEP` characters that are made or looked at. The same
template over the same conversation always takes the same number, on a slow board as on a fast one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import GeneratorType
from typing import Any

# Real templates are below 20 kB and take some fifty steps a message.
MAX_SOURCE = 200_000  # characters
MAX_NODES = 20_000  # of the syntax tree
MAX_STEPS = 500_000
STEPS_A_PAIR = 4  # of messages: some templates go over all of them for every one
CALL_STEPS = 5
CHARS_A_STEP = 32
MAX_CHARS = 2_000_000  # of any one text, beyond what it was given
MAX_NUMBER = 100_000  # that a width, a count or an indent may be
MAX_BITS = 4096  # of a number that is multiplied
MAX_SEPARATOR = 100  # characters that go between items

_ITEMS, _LOOKED_AT, _MADE, _JOINED = "#items", "#looked at", "#made", "#joined"  # no template can spell these filters
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


class TemplateError(ValueError):
    """A chat template that cannot be used; the message says why."""


class _Steps:
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


_steps: ContextVar[_Steps] = ContextVar("steps")


class Program:
    """A compiled template.

    Raises:
        TemplateError: it is no valid Jinja, or too large.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the model's chat template is {len(source):,} characters long: the file is damaged")
        with _counted("is not valid", len(source)):
            self._template = _environment().from_string(source)

    def run(self, variables: Mapping[str, object], n_given: int, n_messages: int = 1) -> str:
        """What the template writes.

        Args:
            n_given: characters of the conversation in `variables`.

        Raises:
            TemplateError: it refuses the conversation, fails, or never ends.
        """
        with _counted("refuses this conversation", n_given) as steps:
            steps.left += STEPS_A_PAIR * n_messages**2
            pieces, n_written = [], 0
            for piece in self._template.generate(variables):
                pieces.append(piece)
                n_written += len(piece)
                steps.take(1)
                if n_written > steps.max_chars:
                    steps.make(n_written)
            return "".join(pieces)


@contextlib.contextmanager
def _counted(failing: str, n_given: int) -> Iterator[_Steps]:
    """Turn whatever a template does wrong into a TemplateError."""
    steps = _Steps(n_given)
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


@functools.cache
def _environment() -> Any:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.runtime import LoopContext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %}: marks what a model is trained to write; the text is written as it is."""

        tags = frozenset(["generation"])  # type: ignore[assignment]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        def _written(self, caller: Callable[[], str]) -> str:
            return caller()

    class Environment(ImmutableSandboxedEnvironment):
        """Jinja's sandbox, which keeps templates from the machine, with every way to much work counted."""

        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            tree = super()._parse(source, name, filename)
            for n_nodes, _ in enumerate(tree.find_all(nodes.Node)):
                if n_nodes > MAX_NODES:
                    raise TemplateError(f"the model's chat template has more than {MAX_NODES:,} parts")
            return _count_nodes(tree, self)

        def concat(self, pieces: Iterable[str]) -> str:
            pieces = list(pieces)
            _steps.get().make(sum(map(len, pieces)))
            return "".join(pieces)

        def getattr(self, obj: Any, attribute: str) -> Any:
            if type(obj) is dict and attribute in obj and not hasattr(dict, attribute):
                return obj[attribute]
            if type(obj) is Namespace and not attribute.startswith("_"):  # what the template put there
                with contextlib.suppress(AttributeError):
                    return getattr(obj, attribute)
            return super().getattr(obj, attribute)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(*args: Any, **kwargs: Any) -> Any:  # "self" may be among a call's own names
            self, context, called, *given = args
            steps = _steps.get()
            steps.take(CALL_STEPS)
            if isinstance(called, LoopContext) and given:  # a recursive loop goes over these
                given[0] = _items(given[0])
            else:  # the sandbox wraps `format`
                _check_method(getattr(called, "__wrapped__", called), given, kwargs)
            result = super(Environment, self).call(context, called, *given, **kwargs)
            if isinstance(result, (str, bytes, list, tuple, dict)):
                steps.take(len(result) // CHARS_A_STEP)
            return result

    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_check_written,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _counted_filter(name, function) for name, function in environment.filters.items()}
    environment.filters |= {_ITEMS: _items, _LOOKED_AT: _looked_at, _MADE: _made, _JOINED: _joined}
    tests: dict[str, Any] = environment.tests
    environment.tests = {name: _counted_test(function) for name, function in tests.items()}
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _refuse(jinja2.TemplateError)
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _count_nodes(tree: Any, environment: Any) -> Any:
    """The syntax tree with a counter around everything that works on much at once."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def through(name: str, node: Any) -> Any:
        made = nodes.Filter(node, name, [], [], None, None).set_lineno(node.lineno)
        made.set_environment(environment)
        return made

    class Counting(NodeTransformer):
        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.iter = through(_ITEMS, node.iter)
            return node

        def visit_Compare(self, node: Any) -> Any:
            self.generic_visit(node)
            for operand in node.ops:
                if not isinstance(operand.expr, nodes.Const):
                    operand.expr = through(_LOOKED_AT, operand.expr)
            return node

        def visit_Getitem(self, node: Any) -> Any:
            self.generic_visit(node)
            return through(_MADE, node) if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            pieces = nodes.List(node.nodes).set_lineno(node.lineno)
            pieces.set_environment(environment)
            return through(_JOINED, pieces)

    return Counting().visit(tree)


def _items(value: Any) -> Any:
    """What a loop goes over, counted."""
    steps = _steps.get()
    if isinstance(value, _SIZED):
        steps.take(1 + len(value))
        return value
    return _one_by_one(value) if isinstance(value, Iterator) else value


def _one_by_one(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _steps.get().take(1)
        yield value


def _looked_at(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        _steps.get().take(len(value) // CHARS_A_STEP)
    elif isinstance(value, _LISTS):
        _deep_size(value)
    return value


def _made(value: Any) -> Any:
    if isinstance(value, _SIZED):
        _steps.get().take(1 + len(value) // CHARS_A_STEP)
    return value


def _joined(values: list[Any]) -> str:
    texts = [str(_check_written(value)) for value in values]
    _steps.get().make(sum(map(len, texts)))
    return "".join(texts)


def _check_written(value: Any) -> Any:
    """A value that is turned to text. Lists of lists of lists may be far larger written than they are."""
    if isinstance(value, str):
        _steps.get().take(len(value) // CHARS_A_STEP)
    elif isinstance(value, (bytes, *_LISTS)):
        _steps.get().make(_deep_size(value))
    return value


def _deep_size(value: Any) -> int:
    """Characters and items of a value as it would be written; each item is a step."""
    steps, n_chars, waiting = _steps.get(), 0, [value]
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


def _check_operation(operator: str, left: Any, right: Any) -> None:
    steps = _steps.get()
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


def _check_method(called: Any, given: list[Any], named: Mapping[str, Any]) -> None:
    """Before a method of a built-in value is called: how much it may make."""
    owner, name, steps = getattr(called, "__self__", None), getattr(called, "__name__", ""), _steps.get()
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
    _steps.get().make(len(pattern) + widths + n_fields * longest)


def _written_length(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    return _deep_size(value) if isinstance(value, _LISTS) else 32


def _check_join(n_separator: int, values: Any) -> Any:
    listed = list(_items(values)) if isinstance(values, Iterable) and not isinstance(values, str) else values
    if isinstance(listed, list):
        n_chars = sum(len(value) if isinstance(value, str) else 1 for value in listed)
        _steps.get().make(n_chars + n_separator * len(listed))
    return listed


def _check_replace(text: Any, old: Any, new: Any) -> None:
    if isinstance(text, (str, bytes)) and isinstance(old, type(text)) and isinstance(new, _SIZED):
        _steps.get().make(len(text) + text.count(old) * len(new))  # type: ignore[arg-type]


def _counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        steps = _steps.get()
        steps.take(1)
        values = [*args, *kwargs.values()]
        for value in values:
            if isinstance(value, _SIZED):
                n = len(value) * (0 if name in _QUICK_FILTERS else 20 if name in _SLOW_FILTERS else 1)
                steps.take(n // CHARS_A_STEP if isinstance(value, str) else n)
                if name in _DEEP_FILTERS:
                    _check_written(value)
            elif name in _COUNTING_FILTERS:
                _check_number(value)
        _check_filter(name, args, kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, GeneratorType):
            return _one_by_one(result)
        return _made(result)

    return counted


def _check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    texts = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str)]
    if name == "format":
        _check_format(str(args[0]), [*args[1:], *kwargs.values()])
    elif name == "replace" and len(args) > 3:  # the evaluation context comes first
        _check_replace(str(args[1]), str(args[2]), str(args[3]))
    elif name == "indent" and args:
        width = max([0, *(len(text) for text in texts), *(v for v in args[1:] if isinstance(v, int))])
        _steps.get().make((str(args[0]).count("\n") + 1) * (width + 1))
    elif name == "join":
        text = [value for value in (*args[2:], *kwargs.values()) if isinstance(value, str)]
        if len(args) > 1 and not isinstance(args[1], str) and any(len(value) > MAX_SEPARATOR for value in text):
            raise TemplateError("the model's chat template writes very much between its items")
    elif name in ("wordwrap", "truncate", "urlize") and any(len(text) > MAX_NUMBER for text in texts):
        raise TemplateError("the model's chat template wraps very long text")


def _counted_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            if isinstance(value, _SIZED) and len(args) > 1:
                _looked_at(value)
        _steps.get().take(1)
        return function(*args, **kwargs)

    return counted


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers: nothing is escaped for HTML."""
    for text in (indent, *(separators or ())):
        if (isinstance(text, str) and len(text) > MAX_SEPARATOR) or (isinstance(text, int) and text > MAX_SEPARATOR):
            raise TemplateError("the model's chat template indents very far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(kind: type[Exception]) -> Callable[[str], None]:
    def refuse(message: str) -> None:
        raise kind(message)

    return refuse


def _strftime_now(pattern: str) -> str:
    from datetime import datetime

    if len(pattern) > MAX_SEPARATOR:
        raise TemplateError("the model's chat template writes the date in very many words")
    return datetime.now().strftime(pattern)
