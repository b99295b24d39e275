"""Chat templates: a conversation to token ids, with what people wrote kept apart from what the template writes.

A template sees what was said, letter for letter, so it decides as it does under transformers. What might become a
control token has a stand-in (see `markup`), and an answer whose text the template keeps goes back in as the very ids
that the model generated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgellm.runtime.text.formats import DOCUMENT, family_of
from edgellm.runtime.text.jinja import Program
from edgellm.runtime.text.markers import split_markers
from edgellm.runtime.text.markup import MARK, Markup, MarkupError, Placed, mark, marked, plain, thoughts
from edgellm.runtime.text.messages import Message, Role, Variant, arranged, in_words, numbered, protected, variants
from edgellm.runtime.text.old_answers import Kept, compare, only_said
from edgellm.runtime.text.steps import TemplateError
from edgellm.runtime.text.tool_stream import CallStream
from edgellm.runtime.text.tools import CallFormat, Tool, ToolCall, format_named, likely_format
from edgellm.runtime.text.vocabulary import Vocabulary

__all__ = ["DOCUMENT", "ChatTemplate", "Message", "Role", "TemplateError", "usable"]

# A call that a template is asked to write, to see whether it is read back.
_PROBE = Tool("probe_tool", "A probe.", {"type": "object", "properties": {"place": {"type": "string"}}})
_PROBED = ToolCall(_PROBE.name, '{"place": "here"}', "probe0001")

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


@dataclass(frozen=True, slots=True)
class _Rendering:
    """What a template wrote, in protected text."""

    text: str
    contents: list[str]  # of the messages, as the template was given them
    places: dict[int, tuple[int, int]]  # message -> where a letter of it stands in `text`, and which letter it is


class ChatTemplate:
    """A model's chat template over its vocabulary.

    Raises:
        TemplateError: the template is no valid Jinja, or too large.
    """

    reads_last = False  # of a conversation the last question alone

    def __init__(self, source: str | None, vocabulary: Vocabulary) -> None:
        """`source` None: a template is chosen by the family that the control tokens show, and `fallback` names it."""
        self.fallback: str | None = None
        if source is None:
            self.fallback, source = family_of(vocabulary)
        self.source = plain(source)
        self._vocabulary = vocabulary
        self._program = Program(self.source)
        self._lead = ""  # white space that the template writes before an answer, and not where it asks for one
        self.turn_end = vocabulary.turn_end
        self._markup = self._reserve(vocabulary.control)
        self._try()

    def render(
        self,
        messages: Sequence[Message],
        *,
        reply: bool = True,
        think: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> list[int]:
        """Token ids of a conversation; with `reply`, up to where the model's answer begins.

        Args:
            think: whether the model is to think before it answers, where its template can say so; None leaves it to
                the template.
            tools: what the model may call.

        Raises:
            TemplateError: the template refuses the conversation, leaves a message out, or never ends.
        """
        messages, tools = self._written(messages, tools)
        rendering = self._fill(messages, reply, think, tools)
        tokens = self._vocabulary.begun(self._markup.encode(*self._with_ids(messages, rendering)))
        if not tokens:
            raise TemplateError("the model's chat template writes nothing")
        return tokens

    def text(
        self,
        messages: Sequence[Message],
        *,
        reply: bool = True,
        think: bool | None = None,
        tools: Sequence[Tool] = (),
    ) -> str:
        """What the template writes, control tokens spelled out. Raises as `render`."""
        messages, tools = self._written(messages, tools)
        return self._markup.restore(self._fill(messages, reply, think, tools).text)

    @cached_property
    def tool_format(self) -> CallFormat:
        """The form in which the model writes calls: its template's, or JSON that is described to it in words."""
        likely = likely_format(self.source, self._vocabulary)
        return likely if likely.is_native and self._reads_back(likely) else format_named("json", self._vocabulary)

    @property
    def tool_note(self) -> str | None:
        """What a user must know of tools with this model."""
        if self.tool_format.is_native:
            return None
        return "the model's chat template has no form of calling tools that is known: they are described to it in words"

    @cached_property
    def can_switch_thinking(self) -> bool:
        """Whether `think` changes what is written."""
        return self._switch is not None

    def reply_opening(self, think: bool | None = None) -> str:
        """What the template writes between a question and its answer, markers spelled out.

        "<|im_end|>\n<|im_start|>assistant\n<think>\n" where the prompt opens the thought by itself.
        """
        try:
            rendering = self._fill([Message("user", "q")], True, think)
        except TemplateError:
            return ""
        at, n_before = rendering.places.get(0, (len(rendering.text), 1))
        return self._markup.restore(rendering.text[at + 1 - n_before :])

    @cached_property
    def _switch(self) -> tuple[str, object, object] | None:
        question: list[dict[str, object]] = [{"role": "user", "content": "q"}]
        for name, on, off in _SWITCHES:
            if name in self.source and (off != "no_think" or off in self.source):
                try:
                    if self._run(question, True, {name: on}) != self._run(question, True, {name: off}):
                        return name, on, off
                except TemplateError:
                    continue
        return None

    def _reserve(self, reserved: frozenset[int], written: str = "") -> Markup:
        # Some families mark their turn markers as ordinary added tokens: those that the template writes are control
        # too.
        literals = self._vocabulary.literals.items()
        markers = {
            token
            for text, token in literals
            if len(text) > 2 and text[0] in "<[" and (text in self.source or text in written)
        }
        try:
            return Markup(self._vocabulary, reserved | markers, "".join([self.source, *self._ends()]))
        except MarkupError as error:
            raise TemplateError(f"the model's chat template cannot be used: {error}") from error

    def _try(self) -> None:
        """Learn from a small conversation how the template writes turns."""
        asked = [Message("user", "question")]
        try:
            prompt = self._fill(asked, True).text
            told = self._fill([*asked, Message("assistant", "answer")], False)
        except TemplateError:
            return
        self._markup = self._reserve(self._vocabulary.control, prompt + told.text)
        if 1 not in told.places:
            return
        at, n_before = told.places[1]
        begin, end = at - n_before, at - n_before + len("answer")
        lead = told.text[len(prompt) : begin]
        self._lead = lead if told.text.startswith(prompt) and lead.isspace() else ""
        for control in self._markup.controls(told.text[end:]):
            if control.tokens[0] in self._vocabulary.end_tokens:
                self.turn_end = control.tokens[0]
                return

    def _reads_back(self, form: CallFormat) -> bool:
        """Whether the template writes tools, and calls in that form."""
        turns = [Message("user", "question"), Message("assistant", "", tool_calls=(_PROBED,))]
        try:
            offered = self._fill(turns[:1], True, tools=[_PROBE]).text
            told = self._markup.restore(self._fill(turns, False, tools=[_PROBE]).text)
        except TemplateError:
            return False
        stream = CallStream(form, [_PROBE], self._vocabulary)
        for text, token in split_markers(told.rpartition("question")[2], self._vocabulary):
            stream.feed(token if token is not None and token in stream.tokens else text.encode())
        stream.end()
        found = [(call.name, call.arguments) for call in stream.calls]
        return _PROBE.name in offered and found == [(_PROBED.name, _PROBED.arguments)]

    def _fill(
        self, messages: Sequence[Message], reply: bool, think: bool | None = None, tools: Sequence[Tool] = ()
    ) -> _Rendering:
        settings: dict[str, object] = {}
        if think is not None and self._switch is not None:
            name, on, off = self._switch
            settings[name] = on if think else off
        contents = [self._content(message) for message in messages]
        markup, n_messages = self._markup, len(messages)
        texts = [
            markup.protect(content, is_answer=message.role == "assistant")
            for content, message in zip(contents, messages, strict=True)
        ] + [markup.protect(plain(call.name)) for message in messages for call in message.tool_calls]
        if tools:
            settings["tools"] = [protected(tool.to_json(), markup) for tool in tools]
        n_given = len(str(settings)) + sum(len(str(message.tool_calls)) for message in messages)
        refusal: TemplateError | None = None
        for variant in variants(messages):

            def write(texts: Sequence[str], variant: Variant = variant) -> str:
                turns = arranged(messages, texts[:n_messages], texts[n_messages:], markup, variant)
                return self._run(turns, reply, settings, n_given + sum(map(len, texts)))

            try:
                text = write(texts)
                places, is_whole = _find(text, texts, messages, write)
            except TemplateError as error:
                refusal = refusal or error
                continue
            if is_whole:
                return _Rendering(text, contents, places)
        raise refusal or TemplateError("the model's chat template does not write the messages that it is given")

    def _written(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[Sequence[Message], Sequence[Tool]]:
        """Messages and tools as the template has a place for them."""
        if tools or any(message.tool_calls or message.role == "tool" for message in messages):
            if self.source == DOCUMENT:
                raise TemplateError("this is a base model, which knows no turns: it cannot be given tools")
            messages = numbered(messages)
            if not self.tool_format.is_native:
                messages, tools = in_words(messages, tools), ()
        elif self.source == DOCUMENT:  # documents begin with the question
            messages = [message for message in messages if message.role != "system"]
        return messages, tools

    def _content(self, message: Message) -> str:
        content = plain(message.content)
        # The template writes this itself, where the model wrote it as part of its answer.
        return content.removeprefix(self._lead) if message.tokens is not None else content

    def _run(
        self, messages: list[dict[str, object]], reply: bool, settings: Mapping[str, object], n_given: int = 1
    ) -> str:
        bos, eos = self._ends()
        given = {
            "messages": messages,
            "add_generation_prompt": reply,
            "bos_token": bos,
            "eos_token": eos,
            "tools": None,  # templates are written for these two to be there
            "documents": None,
            **settings,
        }
        return self._program.run(given, n_given, len(messages))

    def _ends(self) -> tuple[str, str]:
        """What begins a text and what ends one, spelled out."""
        vocabulary = self._vocabulary
        eos = vocabulary.eos if vocabulary.eos is not None else vocabulary.turn_end
        spelled = [vocabulary.literal(token) if token is not None else b"" for token in (vocabulary.bos, eos)]
        return spelled[0].decode("utf-8", "replace"), spelled[1].decode("utf-8", "replace")

    def _with_ids(self, messages: Sequence[Message], rendering: _Rendering) -> tuple[str, list[Placed]]:
        """The protected text, and old answers whose text the template kept, as far as it did."""
        text, real = rendering.text, self._markup.restore(rendering.text)
        kept, only_said_at = list[Kept](), list[int]()
        for i, message in enumerate(messages):
            if message.role == "assistant" and i in rendering.places:
                (at, n_before), content = rendering.places[i], rendering.contents[i]
                answer = compare(message.tokens or (), content, real, at - n_before, self._markup)
                kept.append(answer)
                only_said_at += only_said(content, real, answer, self._markup, has_ids=message.tokens is not None)
        text = self._markup.protect_at(text, only_said_at)
        written = {control.start: control.tokens[0] for control in self._markup.controls(text)}
        placed = list[Placed]()
        for answer in kept:
            known = answer.placed(written, self._vocabulary.control)
            if known is not None and (not placed or placed[-1].end <= known.start):
                placed.append(known)
        return text, placed


def usable(source: str | None, vocabulary: Vocabulary, instead: str | None = None) -> tuple[ChatTemplate, str]:
    """A model's template, or where that cannot be used `instead`, with the reason; "" where it can.

    `instead` None: the template of the model's family.
    """
    if source is not None:
        try:
            template = ChatTemplate(source, vocabulary)
            template.render([Message("user", "Hello")])
        except TemplateError as error:
            return ChatTemplate(instead, vocabulary), str(error)
        return template, ""
    return ChatTemplate(instead, vocabulary), ""


def _find(
    text: str, contents: Sequence[str], messages: Sequence[Message], write: Callable[[Sequence[str]], str]
) -> tuple[dict[int, tuple[int, int]], bool]:
    """Where each message stands in `text`, and whether all of them are there.

    They are marked and written again. Where the marks themselves change what is written, they are put elsewhere.
    Behind the contents of messages, `contents` has the names of the functions that they call.
    """
    answers = {i for i, message in enumerate(messages) if message.role == "assistant"}
    words = [_words(content, i in answers) for i, content in enumerate(contents)]
    # What an answer says beside its calls is left out by many templates.
    optional = {i for i, message in enumerate(messages) if message.tool_calls}
    sought = {i for i, (begin, end) in enumerate(words) if end > begin} - optional
    # An answer that is nothing but a thought may be left out; where it is, it is found all the same.
    words = [span if i in sought else _words(contents[i], False) for i, span in enumerate(words)]
    marks = {i for i, (begin, end) in enumerate(words) if end > begin}
    for where in ((1, 2), (1, 1), (0, 1)):  # the middle, the end, the beginning
        at = [begin + (end - begin) * where[0] // where[1] for begin, end in words]
        with_marks = [
            f"{content[: at[i]]}{mark(i)}{content[at[i] :]}" if i in marks else content
            for i, content in enumerate(contents)
        ]
        try:
            marked_text = write(with_marks)
        except TemplateError:
            continue
        if MARK.sub("", marked_text) == text:
            found = {marked(match): match.start() - 2 * n for n, match in enumerate(MARK.finditer(marked_text))}
            return {i: (found[i], at[i]) for i in marks & found.keys()}, sought <= found.keys()
    return {}, all(contents[i][slice(*words[i])] in text for i in sought)


def _words(content: str, is_answer: bool) -> tuple[int, int]:
    """From where to where a message is looked for: without white space around it, and an answer behind its thought."""
    begin = max((match.end() for match in thoughts(content)), default=0) if is_answer else 0
    rest = content[begin:]
    return begin + len(rest) - len(rest.lstrip()), begin + len(rest.rstrip())
