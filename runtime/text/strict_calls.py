"""Strict tools that a model is free to call: its answer is free up to where a call begins, and the call fits a schema.

One lazy grammar for llguidance. A call begins where `tool_stream` begins to read one: with its family's marker or, of
models that forget theirs, with an object at the beginning of a line that names a tool. Behind it the answer is free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgellm.runtime.request import BadRequest
from edgellm.runtime.text.guidance import LOOSE_SPACE, Grammar, schema_grammar, written_together
from edgellm.runtime.text.tool_stream import head_shapes
from edgellm.runtime.text.tools import CallFormat, Tool

MAX_TOOLS = 128
_BETWEEN = r"[\s\x1c-\x1f;,`]*"  # what may stand between calls, and in front of the first
_SPACE = r"[ \t\r\n]*"
_LETTERS = re.compile(r'"[^"]*"|.')  # of JSON: a text is one
_HARMONY = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")


def strict_calls(tools: Sequence[Tool], form: CallFormat, answer: Grammar | None = None) -> Grammar:
    """What an answer is held to that may call any of `tools`, in words and in calls.

    Args:
        form: that of the model's calls.
        answer: what an answer is held to that calls nothing; calls then stand alone, behind their marker.

    Raises:
        BadRequest: the parameters of a tool are no schema that can be held to, calls in this form are none that an
            answer can be held to, or llguidance is missing.
    """
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools are {len(tools):,}: {MAX_TOOLS} are the most where one of them is strict")
    rules = _Rules(tools, form, answer is None)
    parts = {f"arguments_{i}": _arguments(i, tool) for i, tool in enumerate(tools)}
    if answer is not None:
        parts["answer"] = answer
    lark = "\n".join(rules.harmony() if form.name == "harmony" else rules.others())
    if rules.has_heads:
        parts |= {f"loose_{i}": _arguments(i, tool, is_loose=True) for i, tool in enumerate(tools)}
    return written_together(lark, parts, "set of tools", frozenset(form.markers.values()))


def _arguments(i: int, tool: Tool, *, is_loose: bool = False) -> Grammar:
    """A tool that is not strict takes any object."""
    schema = tool.parameters if tool.strict and tool.parameters else {"type": "object"}
    try:
        return schema_grammar(schema, is_loose=is_loose)
    except BadRequest as error:
        raise BadRequest(f"tools[{i}].function.parameters: {error}") from error


@dataclass(slots=True)
class _Rules:
    """Of Lark."""

    tools: Sequence[Tool]
    form: CallFormat
    has_text: bool  # in front of calls and behind them
    _written: list[str] = field(default_factory=list)

    @property
    def has_heads(self) -> bool:
        """Whether calls may begin without a marker, and be written in lines."""
        return self.has_text and self.form.name not in ("mistral", "harmony")

    def others(self) -> list[str]:
        kinds = ["marked"]
        self._write("marked", self._marked())
        if self.has_heads:
            kinds += self._write_heads()
        rest = f"({' | '.join(kinds)})* TEXT" if self.has_text else "marked+ | @answer"
        self._write("start", rest)
        self._write("TEXT", r"/(.|\n)*/")
        self._write("object", " | ".join(self._object(i) for i in range(len(self.tools))))
        return self._written

    def harmony(self) -> list[str]:
        """Messages with channels, and at the end one call or none. gpt-oss writes all of them with tokens."""
        if missing := [marker for marker in _HARMONY if marker not in self.form.markers]:
            raise BadRequest(
                f"strict tools cannot be promised of this model, whose vocabulary has no {missing[0]}: send "
                "tool_choice required, or strict false"
            )
        start, channel, constrain, message, end = (f"<[{self.form.markers[marker]}]>" for marker in _HARMONY)
        kind = f'(" "? {constrain} /[a-z]+/)?'
        last = "TEXT | spoken" if self.has_text else "@answer | final"
        self._write("start", f'first? (spoken {end} {start} "assistant")* ({last} | call)')
        self._write("first", f'TEXT {end} {start} "assistant"')  # of a message whose header is part of the prompt
        self._write("spoken", f"({channel} /analysis|commentary|final/ {kind})? {message} TEXT")
        if not self.has_text:
            self._written[-1] = f"spoken: {channel} /analysis|commentary/ {kind} {message} TEXT"
            self._write("final", f"{channel} /final/ {kind} {message} @answer")
        self._write("TEXT", r"/(.|\n)*/")
        calls = (f'"{tool.name}" {kind} {message} @arguments_{i}' for i, tool in enumerate(self.tools))
        self._write("call", f'{channel} "commentary to=functions." ({" | ".join(calls)})')
        return self._written

    def _write(self, name: str, body: str) -> None:
        self._written.append(f"{name}: {body}")

    def _marked(self) -> str:
        """A call behind its marker."""
        name, any_object = self.form.name, "object"
        if name == "mistral":
            listed = f'"[" {any_object} (", " {any_object})* "]"'
            return f"{self._opened('[TOOL_CALLS]')} ({' | '.join([listed, *self._headers()])})"
        if name == "llama3":
            return f"{self._opened('<|python_tag|>')} {any_object}"
        return rf'{self._opened("<tool_call>")} "\n" {any_object} "\n" {self._marker("</tool_call>")}'

    def _headers(self) -> Iterator[str]:
        """Mistral's newer form: a name, and arguments behind a marker."""
        if "[ARGS]" not in self.form.markers:
            return
        call_id = f"({self._marker('[CALL_ID]')} /[a-zA-Z0-9]{{9}}/)? " if "[CALL_ID]" in self.form.markers else ""
        for i, tool in enumerate(self.tools):
            yield f'"{tool.name}" {call_id}{self._marker("[ARGS]")} @arguments_{i}'

    def _opened(self, marker: str) -> str:
        """Text up to a marker, and it."""
        if marker in self.form.markers or not self.has_text:
            return f"{'TEXT ' if self.has_text else ''}{self._marker(marker)}"
        self._write("opened[lazy]", rf"/(.|\n)*{_pattern(marker)}/")
        return "opened"

    def _marker(self, marker: str) -> str:
        token = self.form.markers.get(marker)
        return json.dumps(marker) if token is None else f"<[{token}]>"

    def _object(self, i: int) -> str:
        """A call as an object."""
        begin = f'{{"name": "{self.tools[i].name}", "{self._key}": '
        return f'{json.dumps(begin)} @arguments_{i} "}}"'

    @property
    def _key(self) -> str:
        return "parameters" if self.form.name == "llama3" else "arguments"

    def _write_heads(self) -> list[str]:
        """Calls without a marker, each from where its function is named; alone, or as the first of a list."""
        kinds, key = [], json.dumps(json.dumps(self._key))
        self._write("s", "SPACE?")
        self._write("SPACE", f"/{LOOSE_SPACE}/")
        for i, tool in enumerate(self.tools):
            for n_open, close in ((1, 's "}"'), (2, 's "}" s "}"')):
                shapes = [shape for shape in head_shapes(tool.name) if shape.count("{") == n_open]
                heads = "|".join(_SPACE.join(map(_pattern, _LETTERS.findall(shape))) for shape in shapes)
                for listed, behind in (("", ""), (rf"\[{_SPACE}", ' (s "," s object)* s "]"')):
                    name = f"bare_{i}_{n_open}{'_listed' if listed else ''}"
                    self._write(f"{name}_head[lazy]", rf"/((.|\n)*\n)?{_BETWEEN}{listed}({heads})/")
                    self._write(name, f'{name}_head s "," s {key} s ":" s @loose_{i} {close}{behind}')
                    kinds.append(name)
        return kinds


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
