"""A call that must be made: the answer is held to a JSON object that names a tool and has arguments that fit it."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.text.guidance import Grammar, schema_grammar
from edgellm.runtime.text.tools import NamedTool, Tool, ToolChoice


def forced_call(tools: Sequence[Tool], choice: ToolChoice) -> Grammar:
    """What an answer is held to that is one call, in the form that all models are read in.

    Args:
        choice: "required" for any of the tools, or the one that it is to be.

    Raises:
        BadRequest: the parameters of a tool are no schema that can be held to, or llguidance is missing.
    """
    chosen = [tool for tool in tools if not isinstance(choice, NamedTool) or tool.name == choice.name]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": tool.parameters or {"type": "object"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in chosen
    ]
    return schema_grammar(calls[0] if len(calls) == 1 else {"anyOf": calls})
