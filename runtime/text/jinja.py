"""Jinja as transformers sets it up for chat templates, in a sandbox whose work is counted.

A template comes with a model's file and may be hostile. The same template over the same conversation always takes the
same number of steps (see `steps`), on a slow board as on a fast one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edgellm.runtime.text.steps import (
    CALL_STEPS,
    MAX_SEPARATOR,
    STEPS_A_PAIR,
    TemplateError,
    check_method,
    check_operation,
    check_written,
    counted,
    counted_filter,
    counted_test,
    current,
    items,
    joined,
    looked_at,
    made,
)

# Real templates are below 20 kB and take some fifty steps a message.
MAX_SOURCE = 200_000  # characters
MAX_NODES = 8_000  # of the syntax tree
_NOT_ASCII = re.compile("[^\0-~\ud800-\udfff]")
_ITEMS, _LOOKED_AT, _MADE, _JOINED = "#items", "#looked at", "#made", "#joined"  # no template can spell these filters


class Program:
    """A compiled template.

    Raises:
        TemplateError: it is no valid Jinja, or too large.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the model's chat template is {len(source):,} characters long: the file is damaged")
        with counted("is not valid", len(source)):
            self._template = _environment().from_string(source)

    def run(self, variables: Mapping[str, object], n_given: int, n_messages: int = 1) -> str:
        """What the template writes.

        Args:
            n_given: characters of the conversation in `variables`.

        Raises:
            TemplateError: it refuses the conversation, fails, or never ends.
        """
        with counted("refuses this conversation", n_given) as steps:
            steps.left += STEPS_A_PAIR * n_messages**2
            pieces, n_written = [], 0
            for piece in self._template.generate(variables):
                pieces.append(piece)
                n_written += len(piece)
                steps.take(1)
                if n_written > steps.max_chars:
                    steps.make(n_written)
            return "".join(pieces)


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
            current().make(sum(map(len, pieces)))
            return "".join(pieces)

        def getattr(self, obj: Any, attribute: str) -> Any:
            if type(obj) is dict and attribute in obj and not hasattr(dict, attribute):
                return obj[attribute]
            if type(obj) is Namespace and not attribute.startswith("_"):  # what the template put there
                with contextlib.suppress(AttributeError):
                    return getattr(obj, attribute)
            return super().getattr(obj, attribute)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
            current().take(CALL_STEPS)
            given = list(args)
            if isinstance(called, LoopContext) and given:  # a recursive loop goes over these
                given[0] = items(given[0])
            else:  # the sandbox wraps `format`
                check_method(getattr(called, "__wrapped__", called), given, kwargs)
            return made(super().call(context, called, *given, **kwargs))

    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=check_written,
        extensions=[Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.filters = {name: counted_filter(name, function) for name, function in environment.filters.items()}
    environment.filters |= {_ITEMS: items, _LOOKED_AT: looked_at, _MADE: made, _JOINED: joined}
    tests: dict[str, Any] = environment.tests
    environment.tests = {name: counted_test(function) for name, function in tests.items()}
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


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers: nothing is escaped for HTML."""
    for text in (indent, *(separators or ())):
        if (isinstance(text, str) and len(text) > MAX_SEPARATOR) or (isinstance(text, int) and text > MAX_SEPARATOR):
            raise TemplateError("the model's chat template indents very far")
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    # What stands in for a letter stays one: lone surrogates are in no text that is given.
    return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text) if ensure_ascii else text


def _refuse(kind: type[Exception]) -> Callable[[str], None]:
    def refuse(message: str) -> None:
        raise kind(message)

    return refuse


def _strftime_now(pattern: str) -> str:
    from datetime import datetime

    if len(pattern) > MAX_SEPARATOR:
        raise TemplateError("the model's chat template writes the date in very many words")
    return datetime.now().strftime(pattern)
