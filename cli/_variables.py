"""An environment variable for every option of every command, by one rule: `--top-k 20` is EDGELLM_TOP_K=20.

A flag takes 1, true, yes or on, and 0, false, no or off; an option that may be repeated takes one text, or several in
quotes (`_texts.py`). What is typed goes before what is set. Options that only print and leave have no variable.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    _Base = TyperCommand
else:
    _Base = object

PREFIX = "EDGELLM"

# command -> options that mean another thing there than what is set for a chat or for other files: their variables have
# the command's name too, as EDGELLM_IMATRIX_CTX.
OWN: dict[str, frozenset[str]] = {
    "adapt": frozenset({"mem", "output", "prompts", "tokens"}),  # a bound of its own, where others plan for a device
    "bundle": frozenset({"output", "quant", "draft-quant"}),  # one type where `export` takes several
    "export": frozenset({"output", "draft"}),  # a drafter to make files of
    "imatrix": frozenset({"output", "ctx", "chunks", "max-tokens", "text"}),  # of the text that is read
    "plan": frozenset({"output"}),  # goes with --matrix alone
    "worker": frozenset({"device", "host", "mem", "port"}),  # what a server or a plan is set to opens no worker
}
# command -> option -> its former name, which is still taken.
FORMER: dict[str, dict[str, str]] = {"plan": {"draft-tokens": "n-draft"}}

# Of two that exclude each other, the one that is typed goes before the one that is set.
EXCLUSIVE = (
    ("json_", "jsonl"),
    ("schema", "grammar"),
    ("mem", "budget"),
    ("mem", "device"),
    ("budget", "device"),
    ("plan", "ctx"),
    ("plan", "kv"),
    ("plan", "draft_tokens"),
)
# A plan that is typed says these too; where they are typed, they count with any plan.
OF_A_PLAN = (("plan", "model"), ("plan", "draft"), ("plan", "lora"))


def long_name(option: Any) -> str:
    """`ctx` of `-c, --ctx`; of a pair, the name that switches on."""
    return str(max(option.opts, key=len)).removeprefix("--")


def variable(command: str | None, option: Any) -> str | None:
    """The variable of an option, None for one that prints and leaves."""
    if option.param_type_name != "option" or option.is_eager or not option.expose_value:
        return None
    name = long_name(option)
    words = [PREFIX, command or "", name] if name in OWN.get(command or "", ()) else [PREFIX, name]
    return _upper("_".join(words))


def is_typed(context: Any, name: str) -> bool:
    """Whether the value of a parameter was typed, rather than set or left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _is_set(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "ENVIRONMENT"


def _upper(name: str) -> str:
    return name.replace("-", "_").upper()


class _WithVariables(_Base):
    """A command or a group whose options have their variables."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        options = [option for option in self.params if variable(self.name, option)]
        for option in options:
            _bind(option, self.name)
        for argument in self.params:
            if argument.param_type_name == "argument" and argument.nargs == -1 and argument.envvar:
                _split_like_texts(argument)
        if options and not self.epilog:
            self.epilog = _sentence(options, self.name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for new, old in FORMER.get(self.name or "", {}).items():
            args = [f"--{new}{word[len(old) + 2 :]}" if _is_option(word, old) else word for word in args]
        try:
            rest = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            name = getattr(error.param, "name", None)
            if error.param is not None and name and _is_set(ctx, name):
                error.param_hint = _found(error.param)
            raise
        for one, other in (*EXCLUSIVE, *((b, a) for a, b in EXCLUSIVE), *OF_A_PLAN):
            if {one, other} <= set(ctx.params) and is_typed(ctx, one) and _is_set(ctx, other):
                ctx.params[other] = next(option for option in self.params if option.name == other).get_default(ctx)
        return rest


class Command(_WithVariables, TyperCommand):
    """The class of every command."""


class Group(_WithVariables, TyperGroup):
    """The class of the program itself, for the options that stand before a command."""


def _bind(option: Any, command: str | None) -> None:
    name = variable(command, option)
    former = FORMER.get(command or "", {}).get(long_name(option))
    option.envvar = [name, _upper(f"{PREFIX}_{former}")] if former else name
    option.show_envvar = False  # a sentence below the options says the rule
    if option.multiple:
        _split_like_texts(option)


def _split_like_texts(param: Any) -> None:
    """A variable holds one text, or several in quotes."""
    param.type = copy.copy(param.type)
    param.type.split_envvar_value = lambda value: _split(value, param)


def _split(value: str, option: Any) -> list[str]:
    from edgellm.cli._texts import BadTexts, split_texts

    try:
        return split_texts(value)
    except BadTexts as error:
        raise typer.BadParameter(str(error), param_hint=_found(option)) from error


def _found(option: Any) -> str:
    """The variable that a value is from."""
    names = [option.envvar] if isinstance(option.envvar, str) else option.envvar
    return next(name for name in names if os.environ.get(name))


def _is_option(word: str, name: str) -> bool:
    return word == f"--{name}" or word.startswith(f"--{name}=")


def _sentence(options: list[Any], command: str | None) -> str:
    """The rule by an example, and by one more where some variables have the command's name."""
    own = OWN.get(command or "", frozenset())
    plain = sorted(options, key=lambda option: (option.is_flag, option.metavar not in ("N", "FILE")))
    common = [_example(option, command) for option in plain if long_name(option) not in own][:1]
    special = [f"{_example(option, command)} here alone" for option in plain if long_name(option) in own][:1]
    return f"Every option can be set in the environment too: {', and '.join(common + special)}."


def _example(option: Any, command: str | None) -> str:
    value = "" if option.is_flag else " " + (option.metavar or long_name(option).upper().replace("-", "_"))
    return f"{variable(command, option)}={value.strip() or 1} is --{long_name(option)}{value}"
