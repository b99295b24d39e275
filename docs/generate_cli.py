"""Write docs/cli.md from the command itself: every command with its arguments, options, defaults and variables.

    python docs/generate_cli.py            # writes docs/cli.md
    python docs/generate_cli.py --check    # exit code 1 where it is stale

The text depends on the code alone: not on a terminal's width, and not on what variables are set.
"""

from __future__ import annotations

import html
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).with_name("cli.md")
_HEAD = """\
# Commands

<!-- Written by docs/generate_cli.py: change the options in cli/ and run it again. -->

Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 does not fit the budget, 130
interrupted. `edgellm --install-completion` completes commands, options and names in your shell. Every command has
`--help`.
"""
_SHELL_OPTIONS = {"install_completion", "show_completion", "help"}  # the same everywhere, or hang on the shell
_CODE = re.compile(r"(`[^`]+`|(?<!\S)--[a-z][a-z-]*(?: \d+)?|EDGELLM_[A-Z_]+(?:=\S*\w)?)")
_TYPES = {"str": "text", "int": "integer", "float": "number", "int range": "integer", "float range": "number"}


def reference() -> str:
    """The whole page."""
    import typer

    from edgellm.cli.main import app

    return "\n".join([_HEAD, *_pages(typer.main.get_command(app), "edgellm")])


def _pages(command: Any, name: str) -> Iterator[str]:
    """A section for this command, and those of the commands below it."""
    yield _section(command, name)
    subcommands: Mapping[str, Any] = getattr(command, "commands", {})
    for word, subcommand in subcommands.items():
        if not subcommand.hidden:
            yield from _pages(subcommand, f"{name} {word}")


def _section(command: Any, name: str) -> str:
    shown = [p for p in command.params if p.name not in _SHELL_OPTIONS and not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = [name, *(["[OPTIONS]"] if options else []), *map(_usage, arguments)]
    parts = [f"## {name}", _prose(command.help), f"```text\n{' '.join(usage)}{_below(command)}\n```"]
    if subcommands := [(word, sub) for word, sub in getattr(command, "commands", {}).items() if not sub.hidden]:
        parts.append(_summaries(name, subcommands))
    if arguments:
        parts.append(_table("argument", [(f"`{_metavar(p)}`", p) for p in arguments]))
    for panel in dict.fromkeys(p.rich_help_panel for p in options):
        rows = [(_flags(p), p) for p in options if p.rich_help_panel == panel]
        parts.append((f"**{panel}**\n\n" if panel else "") + _table("option", rows))
    return "\n\n".join(parts) + "\n"


def _summaries(name: str, subcommands: Sequence[tuple[str, Any]]) -> str:
    lines = ["| command | what it does |", "|---|---|"]
    for word, sub in subcommands:
        anchor = f"{name} {word}".replace(" ", "-")
        lines.append(f"| [`{word}`](#{anchor}) | {_prose(sub.help).partition(chr(10))[0]} |")
    return "\n".join(lines)


def _below(command: Any) -> str:
    return " COMMAND ..." if getattr(command, "commands", None) else ""


def _prose(text: str | None) -> str:
    """A help text's paragraphs, each on one line."""
    paragraphs = inspect.cleandoc(text or "").partition("\f")[0].split("\n\n")
    return "\n\n".join(_escaped(" ".join(paragraph.split())) for paragraph in paragraphs)


def _table(kind: str, rows: Sequence[tuple[str, Any]]) -> str:
    lines = [f"| {kind} | what it does | type | default | variable |", "|---|---|---|---|---|"]
    for shown, parameter in rows:
        about = _prose(parameter.help) + (" Required." if parameter.required else "")
        variable = parameter.envvar if isinstance(parameter.envvar, str) else ", ".join(parameter.envvar or ())
        cells = (shown, about.replace("\n\n", "<br>"), _type(parameter), _default(parameter), _code(variable))
        lines.append("| " + " | ".join(cells).replace("  ", " ") + " |")
    return "\n".join(lines)


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    name = parameter.name.strip("_").upper().replace("_", "-")
    return f"{name}..." if parameter.nargs == -1 else name


def _usage(argument: Any) -> str:
    return _metavar(argument) if argument.required else f"[{_metavar(argument)}]"


def _flags(option: Any) -> str:
    spellings = " / ".join(", ".join(names) for names in (option.opts, option.secondary_opts) if names)
    return _code(spellings + (f" {option.metavar}" if option.metavar and not option.is_flag else ""))


def _type(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return "flag"
    kind = parameter.type
    if choices := getattr(kind, "choices", None):
        return ", ".join(_code(str(getattr(choice, "value", choice))) for choice in choices)
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    text = _TYPES.get(kind.name, kind.name)
    if (low, high) != (None, None):
        least, most = (
            f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" if bound is not None else ""
            for bound in (low, high)
        )
        text += f" ≥&nbsp;{least}" if high is None else f" ≤&nbsp;{most}" if low is None else f" {least} to {most}"
    return text + (", repeatable" if getattr(parameter, "multiple", False) else "")


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return _escaped(parameter.show_default)
    value = parameter.default
    if value is None or value is False or callable(value) or value in ([], ()):
        return ""
    if getattr(parameter, "is_flag", False):
        return "on"
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(_code(str(getattr(item, "value", item))) for item in values)


def _code(text: str) -> str:
    """A code span; HTML where a bar would end the table's cell."""
    if not text:
        return ""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _escaped(text: str) -> str:
    """Prose as Markdown: nothing is mark-up but code spans, those of the text and around options and variables."""
    parts = _CODE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = html.escape(parts[i], quote=False).replace("\\", "\\\\").replace("|", "\\|")
        parts[i] = parts[i].replace("*", "\\*")
    parts[1::2] = [_code(part.strip("`")) for part in parts[1::2]]
    return "".join(parts)


def main() -> int:
    text = reference()
    if "--check" not in sys.argv[1:]:
        REFERENCE.write_text(text, encoding="utf-8")
        return 0
    if REFERENCE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/cli.md is stale: run `python docs/generate_cli.py`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
