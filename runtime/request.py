"""What is asked of a model: one record for chat, benchmarks, JSON, Python and a server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.runtime.constraint import Constraint
from edgellm.runtime.logprobs import MAX_TOP
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.messages import Message, Role
from edgellm.runtime.text.tools import NamedTool, Tool, ToolCall, ToolChoice, parsed_arguments

if TYPE_CHECKING:
    pass

OnFull = Literal["stop", "shift"]  # a full context ends the answer, or lets go of the oldest turns
Messages: TypeAlias = "str | Sequence[Message | Mapping[str, Any]]"
"""A question; or messages, or {"role", "content"} objects as OpenAI-compatible servers take them."""
Tools: TypeAlias = "Sequence[Tool | Mapping[str, Any]]"
"""Tools, or {"type": "function", "function"} objects as OpenAI-compatible servers take them."""
TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TAKEN = "take system, user, assistant or tool"
_ROLES: dict[str, Role] = {**{role: role for role in get_args(Role)}, "developer": "system"}


class BadRequest(EdgellmError, ValueError):
    """A request that cannot be answered as it stands; the message says what to change."""

    exit_code = USAGE


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked. The default is a greedy answer, as long as the model makes it.

    Raises:
        BadRequest: there is nothing to answer, the last message is an answer, a message is no text, a number is
            negative, or there is a prompt beside messages.
    """

    # Any order that the model's template can write, system messages in between and answers first among them.
    messages: tuple[Message, ...] = ()
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()  # the text ends before any of these; a thought may hold them
    max_tokens: int | None = None  # None: until the model or the context ends it
    think: bool | None = None  # None leaves it to the model's template
    think_budget: int | None = None  # tokens of a thought, after which it is ended; None: as many as it takes
    n_draft: int | None = None  # tokens drafted a round, at most; None: what the engine allows
    on_full: OnFull = "stop"
    prompt: tuple[int, ...] | None = None  # token ids to go on from as they are, instead of messages
    n_logprobs: int | None = None  # alternatives whose log probabilities are told with each token's; None: none are
    score_prompt: bool = False  # tell those of the prompt's tokens too
    tools: tuple[Tool, ...] = ()  # what the model may call
    tool_choice: ToolChoice = "auto"  # "none": the model is not told of the tools
    parallel_tool_calls: bool = True  # several calls in one answer; else it ends with the first
    constraint: Constraint | None = None  # what the text is held to; of the target's vocabulary

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.prompt is not None:
            self._check_prompt(self.prompt)
            return
        if not self.messages:
            raise BadRequest("there is nothing to answer: give at least one message")
        for i, message in enumerate(self.messages, 1):
            _check(i, message)
        if self.messages[-1].role == "assistant":
            raise BadRequest("the last message is an answer already: end with a user's message")
        _check_tools(self.tools, self.tool_choice)
        if self.forces_a_call and self.constraint is not None:
            raise BadRequest("an answer is held to a call or to a schema, not to both")

    def _check_numbers(self) -> None:
        for name in ("max_tokens", "think_budget", "n_draft"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise BadRequest(f"{name} {value} is negative: leave it out, or give 0 or more")
        if not all(isinstance(text, str) for text in self.stop):
            raise BadRequest("stop is no list of texts")
        if self.n_logprobs is not None and not 0 <= self.n_logprobs <= MAX_TOP:
            raise BadRequest(f"n_logprobs {self.n_logprobs} is out of range: 0 to {MAX_TOP}")
        if self.score_prompt and self.n_logprobs is None:
            raise BadRequest("score_prompt tells log probabilities: give n_logprobs too")

    def _check_prompt(self, prompt: tuple[int, ...]) -> None:
        if self.messages:
            raise BadRequest("take messages or a prompt, not both")
        if not prompt or not all(isinstance(token, int) and token >= 0 for token in prompt):
            raise BadRequest("the prompt is no list of token ids: give at least one")
        if self.on_full == "shift":
            raise BadRequest("a prompt has no turns to forget: leave out on_full")
        if self.tools:
            raise BadRequest("a prompt tells of no tools: give messages")

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that the model is told of."""
        return () if self.tool_choice == "none" else self.tools

    @property
    def forces_a_call(self) -> bool:
        """Whether the answer must be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def speaks_of_tools(self) -> bool:
        """Whether tools are offered, or were called before."""
        return bool(self.offered) or any(m.tool_calls or m.role == "tool" for m in self.messages)

    @classmethod
    def of(cls, messages: Messages, *, stop: str | Sequence[str] = (), tools: Tools = (), **settings: Any) -> Request:
        """A request as people and servers write it: one question, or messages as objects. Raises BadRequest."""
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        return cls(read_messages(messages), stop=stop, tools=read_tools(tools), **settings)


def read_messages(given: Messages) -> tuple[Message, ...]:
    """Messages of a question, or of objects with a role and a content that is a text or a list of parts of type text.

    An answer with `tool_calls` needs no content; the ids of calls, and of what a tool says, may be null.

    Raises:
        BadRequest: one is of another form; the message says which.
    """
    if isinstance(given, str):
        return (Message("user", given),)
    if isinstance(given, Mapping) or not isinstance(given, Sequence):
        raise BadRequest('messages is no list of {"role", "content"} objects')
    return tuple(one if isinstance(one, Message) else _read(i, one) for i, one in enumerate(given, 1))


def read_tools(given: Tools) -> tuple[Tool, ...]:
    """Tools of records, or of objects as OpenAI-compatible servers take them.

    Raises:
        BadRequest: one is of another form; the message says where.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise BadRequest('tools is no list of {"type": "function", "function": {...}} objects')
    return tuple(one if isinstance(one, Tool) else _read_tool(f"tools[{i}]", one) for i, one in enumerate(given))


def _read_tool(where: str, given: Any) -> Tool:
    function = given.get("function") if isinstance(given, Mapping) and given.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise BadRequest(f'{where} is no {{"type": "function", "function": {{...}}}} object')
    description, parameters, strict = (function.get(name) for name in ("description", "parameters", "strict"))
    return Tool(
        function.get("name"),  # type: ignore[arg-type]  # `Request` checks it
        "" if description is None else description,
        {} if parameters is None else parameters,
        False if strict is None else strict,
    )


def _read(i: int, given: Any) -> Message:
    if not isinstance(given, Mapping):
        raise BadRequest(f'message {i} is no {{"role", "content"}} object')
    role, content = _ROLES.get(str(given.get("role"))), given.get("content")
    if role is None:
        raise BadRequest(f"message {i} is of role {given.get('role')!r}: {_TAKEN}")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(i, part) for part in content)
    calls = _read_calls(i, given.get("tool_calls"))
    if content is None and calls:
        content = ""
    return Message(
        role,
        content,  # type: ignore[arg-type]  # `Request` checks it
        reasoning=given.get("reasoning"),
        tool_calls=calls,
        tool_call_id=given.get("tool_call_id"),
        name=given.get("name"),
    )


def _read_calls(i: int, given: Any) -> tuple[ToolCall, ...]:
    if given is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise BadRequest(f"tool_calls of message {i} is no list")
    calls = []
    for call in given:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise BadRequest(f'a call of message {i} is no {{"id", "type": "function", "function": {{...}}}} object')
        arguments = function.get("arguments")
        calls.append(ToolCall(function.get("name"), arguments or "{}", call.get("id")))  # type: ignore[arg-type]
    return tuple(calls)


def _part(i: int, part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise BadRequest(f"message {i} holds a part that is no text: only text is read")
    return text


def _check(i: int, message: Message) -> None:
    if message.role not in get_args(Role):
        raise BadRequest(f"message {i} is of role {message.role!r}: {_TAKEN}")
    for text in (
        message.content,
        *(t for t in (message.reasoning, message.name, message.tool_call_id) if t is not None),
    ):
        _check_text(f"message {i}", text)
    if message.tool_calls and message.role != "assistant":
        raise BadRequest(f"message {i} calls tools and is of role {message.role}: only an assistant's calls any")
    for call in message.tool_calls:
        for text in (call.name, call.arguments, *([] if call.id is None else [call.id])):
            _check_text(f"a call of message {i}", text)
        if not call.name:
            raise BadRequest(f"a call of message {i} names no function")
        try:
            parsed_arguments(call.arguments)
        except ValueError as error:
            raise BadRequest(f"message {i} calls {call.name} with arguments that are no JSON object") from error


def _check_text(where: str, text: object) -> None:
    if not isinstance(text, str):
        raise BadRequest(f"{where} is no text: only text is read")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{where} is no valid text: it holds half a surrogate pair") from error


def _check_tools(tools: Sequence[Tool], choice: ToolChoice) -> None:
    for i, tool in enumerate(tools):
        if not isinstance(tool.name, str) or not TOOL_NAME.fullmatch(tool.name):
            raise BadRequest(f"tools[{i}].function.name {tool.name!r} is no name: take 1 to 64 of a-z, A-Z, 0-9, _ - .")
        if any(other.name == tool.name for other in tools[:i]):
            raise BadRequest(f"tools[{i}].function.name {tool.name!r} is taken twice")
        if not isinstance(tool.description, str):
            raise BadRequest(f"tools[{i}].function.description is no text")
        if not isinstance(tool.strict, bool):
            raise BadRequest(f"tools[{i}].function.strict is neither true nor false")
        try:
            if not isinstance(tool.parameters, Mapping) or tool.parameters.get("type", "object") != "object":
                raise ValueError("no schema of an object")
            json.dumps(tool.parameters, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRequest(f"tools[{i}].function.parameters is no JSON schema of type object") from error
    if isinstance(choice, NamedTool):
        if all(tool.name != choice.name for tool in tools):
            raise BadRequest(f"tool_choice names the function {choice.name!r}, which is none of the tools")
        return
    if choice == "required" and not tools:
        raise BadRequest("tool_choice is required and there are no tools")
    if choice not in ("auto", "none", "required"):
        raise BadRequest(f"tool_choice {choice!r} is unknown: take auto, none, required or a function")
