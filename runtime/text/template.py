"""Chat templates: a conversation to token ids, with what people wrote kept apart from what the template writes.

A template sees what was said, letter for letter, so it decides as it does under transformers. What might become a
control token has a stand-in (see `markup`), and an answer whose text the template keeps goes back in as the very ids
that the model generated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from edgellm.runtime.text.formats import DOCUMENT, family_of
from edgellm.runtime.text.jinja import Program
from edgellm.runtime.text.markup import MARK, Markup, MarkupError, Placed, mark, marked, plain, thoughts
from edgellm.runtime.text.old_answers import Kept, compare, only_said
from edgellm.runtime.text.steps import TemplateError
from edgellm.runtime.text.vocabulary import Vocabulary

__all__ = ["DOCUMENT", "ChatTemplate", "Message", "Role", "TemplateError", "usable"]

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str
    tokens: tuple[int, ...] | None = None  # an answer's own ids in the target's vocabulary, without its end token
    reasoning: str | None = None  # an answer's thought, apart from `content`


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

    def render(self, messages: Sequence[Message], *, reply: bool = True, think: bool | None = None) -> list[int]:
        """Token ids of a conversation; with `reply`, up to where the model's answer begins.

        Args:
            think: whether the model is to think before it answers, where its template can say so; None leaves it to
                the template.

        Raises:
            TemplateError: the template refuses the conversation, leaves a message out, or never ends.
        """
        messages = self._written(messages)
        vocabulary, rendering = self._vocabulary, self._fill(messages, reply, think)
        tokens = self._markup.encode(*self._with_ids(messages, rendering))
        if vocabulary.adds_bos and vocabulary.bos is not None and tokens[:1] != [vocabulary.bos]:
            tokens.insert(0, vocabulary.bos)
        if not tokens:
            raise TemplateError("the model's chat template writes nothing")
        return tokens

    def text(self, messages: Sequence[Message], *, reply: bool = True, think: bool | None = None) -> str:
        """What the template writes, control tokens spelled out. Raises as `render`."""
        return self._markup.restore(self._fill(self._written(messages), reply, think).text)

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

    def _fill(self, messages: Sequence[Message], reply: bool, think: bool | None = None) -> _Rendering:
        settings: dict[str, object] = {}
        if think is not None and self._switch is not None:
            name, on, off = self._switch
            settings[name] = on if think else off
        contents = [self._content(message) for message in messages]
        protected = [
            self._markup.protect(content, is_answer=message.role == "assistant")
            for content, message in zip(contents, messages, strict=True)
        ]
        refusal: TemplateError | None = None
        # Some want content as a list of parts. Families without a system role take its text at the head of the first
        # user message.
        can_fold = len(messages) > 1 and messages[0].role == "system"
        for folded in (False, True) if can_fold else (False,):
            for typed in (False, True):

                def write(texts: Sequence[str], typed: bool = typed, folded: bool = folded) -> str:
                    return self._run(
                        _arranged(messages, texts, self._markup, typed, folded), reply, settings, sum(map(len, texts))
                    )

                try:
                    text = write(protected)
                    places, is_whole = _find(text, protected, messages, write)
                except TemplateError as error:
                    refusal = refusal or error
                    continue
                if is_whole:
                    return _Rendering(text, contents, places)
        raise refusal or TemplateError("the model's chat template does not write the messages that it is given")

    def _written(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Without what the one format has no place for that is ours: documents begin with the question."""
        return [message for message in messages if message.role != "system"] if self.source == DOCUMENT else messages

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


def _arranged(
    messages: Sequence[Message], contents: Sequence[str], markup: Markup, typed: bool, folded: bool
) -> list[dict[str, object]]:
    """Messages as templates are given them."""
    texts = list(contents)
    if folded:
        texts[:2] = ["", f"{texts[0]}\n\n{texts[1]}"]
    arranged = []
    for message, text in zip(messages, texts, strict=True):
        made: dict[str, object] = {"role": message.role}
        made["content"] = [{"type": "text", "text": text}] if typed else text
        if message.reasoning is not None:
            # The field's name and gpt-oss' own.
            made["reasoning_content"] = made["thinking"] = markup.protect(plain(message.reasoning))
        arranged.append(made)
    return arranged[1:] if folded else arranged


def _find(
    text: str, contents: Sequence[str], messages: Sequence[Message], write: Callable[[Sequence[str]], str]
) -> tuple[dict[int, tuple[int, int]], bool]:
    """Where each message stands in `text`, and whether all of them are there.

    They are marked and written again. Where the marks themselves change what is written, they are put elsewhere.
    """
    words = [_words(content, message.role == "assistant") for content, message in zip(contents, messages, strict=True)]
    sought = {i for i, (begin, end) in enumerate(words) if end > begin}
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
