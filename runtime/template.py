"""Chat templates: a conversation to token ids, with what people wrote kept apart from what the template writes.

The template is rendered with a placeholder for every message's content. Control tokens are looked for in the
template's own text alone, so no message can forge one, and an answer goes back in as the very ids that the model
generated.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import FrameType
from typing import Any, Literal

from edgellm.runtime.vocabulary import Vocabulary

Role = Literal["system", "user", "assistant"]


class TemplateError(ValueError):
    """A chat template that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str
    tokens: tuple[int, ...] | None = None  # an answer's own ids in the target's vocabulary, without its end token
    reasoning: str | None = None  # an answer's thought, apart from `content`


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_TRANSCRIPT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% elif m.role == 'user' %}"
    "USER: {{ m.content }}\n{% else %}ASSISTANT:{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
DOCUMENT = (  # for base models, which know no turns
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}### Question\n\n{{ m.content }}\n\n### Answer\n\n"
    "{% elif m.role == 'assistant' %}{{ m.content }}\n\n{% endif %}{% endfor %}"
)
# A control token that only one family has -> that family's template, for files that carry none.
_FAMILIES = (
    ("<|im_start|>", "ChatML", _CHATML),
    ("<start_of_turn>", "Gemma", _GEMMA),
    ("<|eot_id|>", "Llama 3", _LLAMA_3),
)

# What templates call the setting that makes a model think, and its values for yes and no. The first that changes what a
# template writes is its switch.
_SWITCHES: tuple[tuple[str, object, object], ...] = (
    ("enable_thinking", True, False),
    ("thinking", True, False),
    ("reasoning", True, False),
    ("thinking_mode", "enabled", "disabled"),
    ("thinking_budget", -1, 0),
    ("reasoning_effort", "high", "no_think"),
    ("reasoning_effort", "high", "low"),  # gpt-oss always thinks, and so it thinks little
)

_OPEN, _CLOSE = "\ue000", "\ue001"  # private use
_EDGE = "\u2002"  # a space that `trim` removes and that templates do not write
_PLACEHOLDER = re.compile(f"({_EDGE}?){_OPEN}([0-9]{{1,9}}){_CLOSE}({_EDGE}?)")

# A template comes with the file and may be hostile. Real ones are below 30 kB, write a few hundred characters a message
# and take milliseconds.
MAX_SOURCE = 500_000  # characters
MAX_OUTPUT = 5_000_000  # characters, without the messages
MAX_PRODUCT = 1_000_000  # numbers and items that its multiplications may make
MAX_S = 2.0


class ChatTemplate:
    """A model's chat template over its vocabulary.

    Raises:
        TemplateError: the template is no valid Jinja, or too large.
    """

    def __init__(self, source: str | None, vocabulary: Vocabulary) -> None:
        """`source` None: a template is chosen by the family that the control tokens show, and `fallback` names it."""
        self.fallback: str | None = None
        if source is None:
            self.fallback, source = _family(vocabulary)
        self._vocabulary, self._source = vocabulary, source
        self._template = _compile(source)
        literals = vocabulary.literals
        # Some families mark their turn markers as ordinary added tokens: those that the template writes are control
        # too.
        self._reserved = vocabulary.control | {
            token for text, token in literals.items() if len(text) > 2 and text[0] in "<[" and text in source
        }
        known = sorted((text for text, token in literals.items() if token in self._reserved), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, known)) or r"(?!)")
        self.turn_end = self._find_turn_end()

    def render(self, messages: Sequence[Message], *, reply: bool = True, think: bool | None = None) -> list[int]:
        """Token ids of a conversation; with `reply`, up to where the model's answer begins.

        Args:
            think: whether the model is to think before it answers, where its template can say so; None leaves it to
                the template.

        Raises:
            TemplateError: the template refuses the conversation, leaves its last message out, or never ends.
        """
        rendered = self._fill(messages, reply, think)
        vocabulary, tokens, run = self._vocabulary, list[int](), ""
        written = {int(match.group(2)) for match in _PLACEHOLDER.finditer(rendered)}
        if messages and (len(messages) - 1 not in written or max(written) >= len(messages)):
            raise TemplateError("the model's chat template does not write the messages that it is given")

        def flush() -> None:
            nonlocal run
            tokens.extend(vocabulary.encode_leniently(run.encode("utf-8", "replace"), self._reserved))
            run = ""

        end = 0
        for match in (*_PLACEHOLDER.finditer(rendered), None):
            for text, token in self._split_control(rendered[end : match.start() if match else None]):
                run += text
                if token is not None:
                    flush()
                    tokens.append(token)
            if match is None:
                break
            end = match.end()
            message = messages[int(match.group(2))]
            if message.tokens is not None:
                if vocabulary.decode(message.tokens[:1]).startswith(b" "):
                    run = run.removesuffix(" ")  # the template's space for an answer that brings its own
                flush()
                tokens.extend(message.tokens)
            else:
                content = message.content if match.group(1) else message.content.lstrip()
                run += content if match.group(3) else content.rstrip()
        flush()
        if vocabulary.adds_bos and vocabulary.bos is not None and tokens[:1] != [vocabulary.bos]:
            tokens.insert(0, vocabulary.bos)
        if not tokens:
            raise TemplateError("the model's chat template writes nothing")
        return tokens

    @cached_property
    def can_switch_thinking(self) -> bool:
        """Whether `think` changes what is written."""
        return self._switch is not None

    def reply_opening(self, think: bool | None = None) -> str:
        """What the template writes between a question and its answer, markers spelled out.

        "<|im_end|>\\n<|im_start|>assistant\\n<think>\\n" where the prompt opens the thought by itself.
        """
        try:
            rendered = self._fill([Message("user", "q")], True, think)
        except TemplateError:
            return ""
        return rendered[max((match.end() for match in _PLACEHOLDER.finditer(rendered)), default=0) :]

    @cached_property
    def _switch(self) -> tuple[str, object, object] | None:
        question = [{"role": "user", "content": "q"}]
        for name, on, off in _SWITCHES:
            if name in self._source and (off != "no_think" or off in self._source):
                try:
                    if self._run(question, True, {name: on}) != self._run(question, True, {name: off}):
                        return name, on, off
                except TemplateError:
                    continue
        return None

    def _fill(self, messages: Sequence[Message], reply: bool, think: bool | None = None) -> str:
        filled = [
            {"role": message.role, "content": f"{_EDGE}{_OPEN}{i}{_CLOSE}{_EDGE}"} for i, message in enumerate(messages)
        ]
        settings: dict[str, object] = {}
        if think is not None and self._switch is not None:
            name, on, off = self._switch
            settings[name] = on if think else off
        try:
            return self._run(filled, reply, settings)
        except TemplateError:
            if len(messages) < 2 or messages[0].role != "system":
                raise
        # Families without a system role take its text at the head of the first user message.
        filled[1]["content"] = f"{filled[0]['content']}\n\n{filled[1]['content']}"
        return self._run(filled[1:], reply, settings)

    def _run(self, messages: list[dict[str, str]], reply: bool, settings: Mapping[str, object] = {}) -> str:
        vocabulary = self._vocabulary
        by_token = {token: text for text, token in vocabulary.literals.items()}
        end = vocabulary.turn_end
        given = {
            "messages": messages,
            "add_generation_prompt": reply,
            "bos_token": by_token.get(vocabulary.bos, "") if vocabulary.bos is not None else "",
            "eos_token": by_token.get(end, "") if end is not None else "",
            "tools": None,  # templates are written for these two to be there
            "documents": None,
            **settings,
        }
        pieces, n_written = [], 0
        with _guarded("refuses this conversation"):
            for piece in self._template.generate(given):
                pieces.append(piece)
                n_written += len(piece)
                if n_written > MAX_OUTPUT:
                    raise TemplateError(f"the model's chat template writes more than {MAX_OUTPUT:,} characters")
        return "".join(pieces)

    def _split_control(self, text: str) -> list[tuple[str, int | None]]:
        """Text, each piece with the control token behind it."""
        pieces: list[tuple[str, int | None]] = []
        end = 0
        for match in self._control.finditer(text):
            pieces.append((text[end : match.start()], self._vocabulary.literals[match.group()]))
            end = match.end()
        return [*pieces, (text[end:], None)]

    def _find_turn_end(self) -> int | None:
        """The token that the template writes behind an answer; what the vocabulary says where it writes none."""
        try:
            rendered = self._fill([Message("user", "q"), Message("assistant", "a")], False)
        except TemplateError:
            return self._vocabulary.turn_end
        behind = rendered[max((match.end() for match in _PLACEHOLDER.finditer(rendered)), default=0) :]
        for _, token in self._split_control(behind):
            if token in self._vocabulary.end_tokens:
                return token
        return self._vocabulary.turn_end


def _family(vocabulary: Vocabulary) -> tuple[str, str]:
    for marker, name, source in _FAMILIES:
        if marker in vocabulary.literals:
            return name, source
    return "plain transcript", _TRANSCRIPT


def _compile(source: str) -> Any:
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"the model's chat template is {len(source):,} characters long: the file is damaged")
    with _guarded("is not valid"):
        return _environment().from_string(source)


def _environment() -> Any:
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """Jinja's sandbox, which keeps templates from the machine, with limits on what they can make it compute."""

        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [side if isinstance(side, (int, float)) else len(side) for side in (left, right)]
            too_large = operator == "*" and abs(sizes[0] * sizes[1]) > MAX_PRODUCT
            if too_large or operator == "**" or (operator == "%" and isinstance(left, str)):
                raise SecurityError(f"{operator!r} of {type(left).__name__} and {type(right).__name__} is too much")
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


@contextmanager
def _guarded(failing: str) -> Iterator[None]:
    """Turn whatever a template does wrong into a TemplateError, loops that never end included."""
    deadline = time.monotonic() + MAX_S

    def watch(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if time.monotonic() > deadline:
            raise TemplateError(f"the model's chat template took more than {MAX_S:g} s")
        return watch

    previous = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    except TemplateError:
        raise
    except Exception as error:  # a template can raise anything
        said = str(error) or type(error).__name__
        raise TemplateError(f"the model's chat template {failing}: {said}") from error
    finally:
        sys.settrace(previous)


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(pattern)
