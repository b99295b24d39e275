"""Chat templates: a conversation to token ids, with what people wrote kept apart from what the template writes.

The template is rendered with a placeholder for every message's content. Control tokens are looked for in the
template's own text alone, so no message can forge one, and an answer goes back in as the very ids that the model
generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    "USER: {{ m.content }}\n{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# A control token that only one family has -> that family's template, for files that carry none.
_FAMILIES = (
    ("<|im_start|>", "ChatML", _CHATML),
    ("<start_of_turn>", "Gemma", _GEMMA),
    ("<|eot_id|>", "Llama 3", _LLAMA_3),
)

_OPEN, _CLOSE = "\ue000", "\ue001"  # private use
_EDGE = "\u2002"  # a space that `trim` removes and that templates do not write
_PLACEHOLDER = re.compile(f"({_EDGE}?){_OPEN}(\\d+){_CLOSE}({_EDGE}?)")


class ChatTemplate:
    """A model's chat template over its vocabulary.

    Raises:
        TemplateError: the template is no valid Jinja.
    """

    def __init__(self, source: str | None, vocabulary: Vocabulary) -> None:
        """`source` None: a template is chosen by the family that the control tokens show, and `fallback` names it."""
        self.fallback: str | None = None
        if source is None:
            self.fallback, source = _family(vocabulary)
        self._vocabulary = vocabulary
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

    def render(self, messages: Sequence[Message], *, reply: bool = True) -> list[int]:
        """Token ids of a conversation; with `reply`, up to where the model's answer begins.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        rendered = self._fill(messages, reply)
        vocabulary, tokens, run = self._vocabulary, list[int](), ""

        def flush() -> None:
            nonlocal run
            tokens.extend(vocabulary.encode(run.encode("utf-8", "replace"), self._reserved))
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
                flush()
                tokens.extend(message.tokens)
            else:
                content = message.content if match.group(1) else message.content.lstrip()
                run += content if match.group(3) else content.rstrip()
        flush()
        if vocabulary.adds_bos and vocabulary.bos is not None and tokens[:1] != [vocabulary.bos]:
            tokens.insert(0, vocabulary.bos)
        return tokens

    def _fill(self, messages: Sequence[Message], reply: bool) -> str:
        import jinja2

        filled = [
            {"role": message.role, "content": f"{_EDGE}{_OPEN}{i}{_CLOSE}{_EDGE}"} for i, message in enumerate(messages)
        ]
        try:
            return self._run(filled, reply)
        except jinja2.TemplateError as error:
            if not messages or messages[0].role != "system" or len(messages) < 2:
                raise TemplateError(f"the chat template refuses this conversation: {error}") from error
        # Families without a system role take its text at the head of the first user message.
        filled[1]["content"] = f"{filled[0]['content']}\n\n{filled[1]['content']}"
        try:
            return self._run(filled[1:], reply)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template refuses this conversation: {error}") from error

    def _run(self, messages: list[dict[str, str]], reply: bool) -> str:
        vocabulary = self._vocabulary
        by_token = {token: text for text, token in vocabulary.literals.items()}
        end = vocabulary.turn_end
        text: str = self._template.render(
            messages=messages,
            add_generation_prompt=reply,
            bos_token=by_token.get(vocabulary.bos, "") if vocabulary.bos is not None else "",
            eos_token=by_token.get(end, "") if end is not None else "",
        )
        return text

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
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the model's chat template is not valid: {error}") from error


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(pattern)
