"""The options of sampling: those of a table's rows, which stand where a command has `sampling`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

from edgellm.cli._options import SAMPLING, checked, option
from edgellm.memory.sampling_parameters import PARAMETERS, Parameter

ChosenSampling = dict[str, Any]  # values by name


def takes_sampling(*names: str, **defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of some sampling parameters, or of all; its `sampling` is then their values by name.

    Args:
        defaults: of this command, where they are not the table's.
    """
    rows = [PARAMETERS[name] for name in names] if names else list(PARAMETERS.values())

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(**given: Any) -> None:
            chosen = {row.name: given.pop(_key(row)) for row in rows}
            function(**given, sampling=chosen)

        signature = inspect.signature(function, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for it in signature.parameters.values():
            parameters += [_of_row(row, defaults) for row in rows] if it.name == "sampling" else [it]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {it.name: it.annotation for it in parameters}
        return command

    return decorate


def _key(row: Parameter) -> str:
    return row.option.replace("-", "_")


def _of_row(row: Parameter, defaults: dict[str, Any]) -> inspect.Parameter:
    kind: Any = row.kind | None if row.optional else row.kind
    short = [row.short] if row.short else []
    told = option(
        f"--{row.option}", *short, help=row.help, metavar=row.metavar, callback=checked(row.said), panel=SAMPLING
    )
    return inspect.Parameter(
        _key(row),
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=defaults.get(row.name, row.default),
        annotation=Annotated[kind, told],
    )
