"""Thoughts apart from answers: in every family's markers, however they are cut into tokens, and with any drafter."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fakes import byte_vocabulary
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from edgellm.runtime import ChatSession, Engine, EngineOptions, Sampling, load
from edgellm.runtime.text.guidance import text_grammar
from edgellm.runtime.text.markers import Markers, find_markers, marker_ids, opens_thought
from edgellm.runtime.text.reasoning import AnswerStream, Thinking, ThoughtStream
from edgellm.runtime.text.template import Message
from edgellm.runtime.text.vocabulary import Vocabulary

TAGS = Markers("<think>", "</think>", "\n</think>\n\n")
HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
# Of our own making: a thought is written by the model itself, old ones are dropped, and one is closed to switch it off.
SWITCHED = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set content = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if not thought and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if thought and loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ content }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENED = (  # the prompt opens the thought, and nothing switches it off
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
ADDED = ("<think>", "</think>")
VARIED = Sampling(repeat_penalty=3.0)  # a tiny random model says one thing over and over otherwise
SEEDED = Sampling(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=7)


def parts(stream: ThoughtStream, tokens: Sequence[int]) -> tuple[str, str]:
    """Thought and text of whole tokens."""
    found = [item for token in tokens for item in stream.feed(token)] + stream.end()
    thought, text = (b"".join(data for kind, data in found if kind is wanted) for wanted in (True, False))
    return thought.decode(), text.decode()


@pytest.mark.parametrize(
    ("said", "in_thought", "expected"),
    [("tin", False, False), ("<think></think>tin", False, True), ("</think>tin", True, True), ("", True, True)],
)
def test_an_answer_knows_whether_any_of_its_tokens_are_a_thoughts(said: str, in_thought: bool, expected: bool) -> None:
    """A thought that says nothing is one, too."""
    vocabulary = byte_vocabulary(control=ADDED)
    stream = AnswerStream(TAGS, vocabulary, in_thought=in_thought)
    for token in marker_ids(said, vocabulary):
        stream.feed(token)
    assert (stream.has_thought, stream.thought) == (expected, "")


@pytest.mark.parametrize(
    ("template", "opening", "closing"),
    [
        ("{{ '<think>' }} {{ x.split('</think>') }}", "<think>", "</think>"),
        ("{{ content.split('</think>')[-1] }}", "<think>", "</think>"),
        ("{{ '<seed:think>' }}{{ '</seed:think>' }}", "<seed:think>", "</seed:think>"),
        ("{{ '[THINK]' + x + '[/THINK]' }}", "[THINK]", "[/THINK]"),
        ("<|channel>thought\n{{ x }}<channel|>", "<|channel>thought", "<channel|>"),
        ("<|START_THINKING|><|END_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|start|>assistant<|channel|>analysis<|message|><|end|>", "<|channel|>analysis<|message|>", "<|end|>"),
    ],
)
def test_the_markers_of_a_family_are_found_in_its_template(template: str, opening: str, closing: str) -> None:
    markers = find_markers(template, byte_vocabulary())
    assert markers is not None
    assert (markers.opening, markers.closing, markers.in_template) == (opening, closing, True)


def test_markers_are_found_among_the_tokens_and_nowhere_else() -> None:
    found = find_markers("{{ x }}", byte_vocabulary(control=ADDED))
    assert found == TAGS
    assert find_markers("write your <thinking_notes> here </thinking_notes>", byte_vocabulary()) is None
    assert find_markers(None, byte_vocabulary(control=["<|im_start|>", "<|end|>"])) is None


@given(st.text("ab <>/think\n", max_size=20), st.text("ab <>/think\n", max_size=20), st.booleans(), st.booleans())
def test_thought_and_text_come_apart_however_they_are_cut(
    thought: str, text: str, as_tokens: bool, in_thought: bool
) -> None:
    if "think>" in thought + text:
        return
    vocabulary = byte_vocabulary(b"</thi", b"nk>", b"<think", control=ADDED if as_tokens else ())
    written = f"{'' if in_thought else TAGS.opening}\n{thought}\n{TAGS.closing}\n\n{text}"
    streams = [ThoughtStream(TAGS, vocabulary, in_thought=in_thought) for _ in range(2)]
    by_byte = [256 + 3 + ADDED.index(part) if part in ADDED and as_tokens else part for part in _cut(written)]
    tokens = [token for part in by_byte for token in ([part] if isinstance(part, int) else part.encode())]
    expected = (thought.strip("\n"), text.lstrip("\n"))
    assert parts(streams[0], tokens) == expected
    assert parts(streams[1], marker_ids(written, vocabulary)) == expected  # in longer tokens
    assert not streams[0].in_thought


def _cut(text: str) -> list[str]:
    """At the tags."""
    for tag in ADDED:
        text = text.replace(tag, f"\0{tag}\0")
    return [part for part in text.split("\0") if part]


def test_no_half_marker_is_ever_shown() -> None:
    stream = ThoughtStream(TAGS, byte_vocabulary(), in_thought=True)
    shown = ""
    for token in b"a </thin b </think>c":
        shown += "".join(data.decode() for _, data in stream.feed(token))
        assert not shown.endswith(("<", "</", "</t", "</th", "</thi"))
    assert shown == "a </thin b c"
    shown += "".join(data.decode() for token in b"</think> d" for _, data in stream.feed(token))
    assert shown == "a </thin b c</think> d"  # once it is closed, it is text


def test_a_marker_that_is_a_token_is_not_made_by_text_that_spells_it() -> None:
    vocabulary = byte_vocabulary(control=ADDED)
    stream = ThoughtStream(TAGS, vocabulary, in_thought=True)
    assert parts(stream, [*b"say </think> then", 257, *b"done"]) == ("say </think> then", "done")


def test_an_opening_behind_the_first_word_is_text() -> None:
    vocabulary = byte_vocabulary()
    assert parts(ThoughtStream(TAGS, vocabulary), b"the <think> tag") == ("", "the <think> tag")
    assert parts(ThoughtStream(TAGS, vocabulary), b"\n <think>a") == ("", "\n <think>a")  # a space is a word here
    assert parts(ThoughtStream(TAGS, vocabulary), b"\n\n<think>a") == ("a", "")
    assert parts(ThoughtStream(TAGS, vocabulary), b"\n\n") == ("", "\n\n")
    assert parts(ThoughtStream(None, vocabulary), b"<think>a</think>") == ("", "<think>a</think>")


def test_an_answer_that_ends_inside_its_thought_has_no_text() -> None:
    vocabulary = byte_vocabulary()
    stream = AnswerStream(TAGS, vocabulary, in_thought=True)
    for token in b"so far </th":
        stream.feed(token)
    stream.end()
    assert (stream.thought, stream.text) == ("so far </th", "")


def test_parts_that_say_what_they_are_come_in_any_order() -> None:
    vocabulary = byte_vocabulary(control=HARMONY, ends=["<|return|>"])
    markers = find_markers("<|start|>assistant<|channel|>analysis<|message|><|end|>", vocabulary)
    assert markers is not None
    said = (
        "<|channel|>analysis<|message|>let me see<|end|><|start|>assistant<|channel|>commentary<|message|>One moment. "
        "<|end|><|start|>assistant<|channel|>analysis<|message|> and more<|end|><|start|>assistant"
        "<|channel|>final<|message|>The answer.<|return|>"
    )
    stream = ThoughtStream(markers, vocabulary)
    assert parts(stream, marker_ids(said, vocabulary)) == ("let me see and more", "One moment. The answer.")
    assert parts(ThoughtStream(markers, vocabulary), b"plain text") == ("", "plain text")


def test_the_last_marker_of_a_prompt_says_whether_it_opens_the_thought() -> None:
    assert opens_thought(TAGS, "<|im_start|>assistant\n<think>\n")
    assert not opens_thought(TAGS, "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not opens_thought(TAGS, "<|im_start|>assistant\n")


# --- with a model


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """`engines(TEMPLATE, "itself")`: a tiny model of random weights, drafted by nobody, by itself or by one of another
    vocabulary."""
    folder, opened = tmp_path_factory.mktemp("tiny"), dict[tuple[str, str], Engine]()
    other = write_tiny(folder / "other.gguf", vocab="spm")

    def open_(template: str, drafter: str = "nobody") -> Engine:
        key = (template, drafter)
        if key not in opened:
            path = folder / f"{'switched' if template == SWITCHED else 'opened'}.gguf"
            if not path.exists():
                write_tiny(path, chat_template=template, added=ADDED)
            copies = drafter != "nobody"
            options = EngineOptions(n_ctx=512, n_draft=4, fixed=True, copy=copies, learn="off", n_threads=1)
            opened[key] = load(path, {"nobody": None, "itself": path, "other": other}[drafter], options)
        return opened[key]

    yield open_
    for engine in opened.values():
        engine.close()


def say(session: ChatSession, text: str = "hat", **options: int) -> str:
    return "".join(session.reply(text, **options))


def vocabulary_of(session: ChatSession) -> Vocabulary:
    return session.engine.model.vocabulary


@pytest.mark.parametrize("sampling", [Sampling(), VARIED, SEEDED], ids=["greedy", "varied", "seeded"])
def test_a_budget_ends_the_thought_at_the_same_token_whatever_is_drafted(
    engines: Callable[..., Engine], sampling: Sampling
) -> None:
    for budget in (0, 1, 6, 7, 13):
        answers = []
        for drafter in ("nobody", "itself", "other"):
            session = ChatSession(engines(OPENED, drafter), sampling=sampling, think_budget=budget)
            say(session, max_tokens=40)
            assert session.last is not None
            answers.append(session.last)
            forced = marker_ids("\n</think>\n\n", vocabulary_of(session))
            if budget:
                assert list(session.last.tokens[budget : budget + len(forced)]) == forced
                assert session.last.stats.n_thought == budget
        assert len({(answer.tokens, answer.text, answer.reasoning) for answer in answers}) == 1
        assert bool(answers[0].reasoning) == (budget > 0) or budget == 1  # which may be half a character
        assert answers[1].stats.n_accepted > 0 or sampling is SEEDED


@pytest.mark.parametrize("template", [OPENED, SWITCHED], ids=["opened", "switched"])
@pytest.mark.parametrize("sampling", [VARIED, SEEDED], ids=["varied", "seeded"])
def test_an_answer_behind_a_thought_is_held_to_its_grammar_whatever_is_drafted(
    engines: Callable[..., Engine], sampling: Sampling, template: str
) -> None:
    for think, budget in ((None, 0), (None, 7), (False, None)):
        answers = []
        for drafter in ("nobody", "itself", "other"):
            engine = engines(template, drafter)
            held = text_grammar("/(yes|no|perhaps){2,3}!/").of(engine.model.vocabulary)
            session = ChatSession(engine, sampling=sampling, think=think, think_budget=budget, constraint=held)
            say(session, max_tokens=60)
            assert session.last is not None
            answers.append(session.last)
        assert len({(answer.tokens, answer.text, answer.reasoning, answer.finish_reason) for answer in answers}) == 1
        assert answers[0].finish_reason == "stop"
        assert re.fullmatch("(yes|no|perhaps){2,3}!", answers[0].text)


def test_a_thought_within_its_budget_is_left_alone(engines: Callable[..., Engine]) -> None:
    free = ChatSession(engines(OPENED), sampling=VARIED)
    say(free, max_tokens=40)
    assert free.last is not None
    tokens, vocabulary = free.last.tokens, vocabulary_of(free)
    pieces = [vocabulary.piece(token) for token in tokens]
    n = next(i for i in range(8, 30) if pieces[i].isalnum() and not any(pieces[i] in piece for piece in pieces[:i]))
    closing = pieces[n]
    answers = []
    for budget in (None, n + 5):
        for drafter in ("nobody", "itself", "other"):
            session = ChatSession(engines(OPENED, drafter), sampling=VARIED, think_budget=budget)
            session.thinking.markers = dataclasses.replace(
                TAGS, closing=closing.decode()
            )  # what it says of its own accord
            say(session, max_tokens=40)
            assert session.last is not None
            answers.append(session.last)
    assert all(answer.tokens == tokens for answer in answers)
    assert len({(answer.text, answer.reasoning) for answer in answers}) == 1
    assert answers[0].reasoning is not None


def test_a_stop_text_ends_the_text_and_not_the_thought(engines: Callable[..., Engine]) -> None:
    free = ChatSession(engines(OPENED), sampling=VARIED, think_budget=12)
    say(free, max_tokens=40)
    assert free.last is not None
    assert free.last.reasoning is not None
    stop = free.last.reasoning[2:4]
    stopped = ChatSession(engines(OPENED), sampling=VARIED, think_budget=12, stop=[stop])
    say(stopped, max_tokens=40)
    assert stopped.last is not None
    assert stopped.last.reasoning == free.last.reasoning
    assert stopped.last.text == free.last.text.partition(stop)[0]


def test_a_thought_is_told_piece_by_piece_and_is_no_part_of_the_text(engines: Callable[..., Engine]) -> None:
    session, told = ChatSession(engines(OPENED), sampling=VARIED, think_budget=12), list[str]()
    text = "".join(session.reply("hat", max_tokens=40, on_thought=told.append))
    assert session.last is not None
    assert "".join(told) == session.last.reasoning
    assert len(told) > 3
    assert text == session.last.text
    assert "think>" not in text
    assert session.messages[1].reasoning == session.last.reasoning
    assert session.messages[1].content == text


@pytest.mark.parametrize("template", [SWITCHED, OPENED], ids=["switched", "opened"])
def test_thinking_is_switched_off_by_the_template_or_by_closing_the_thought(
    engines: Callable[..., Engine], template: str
) -> None:
    session = ChatSession(engines(template), sampling=VARIED, think=False)
    say(session, max_tokens=20)
    assert session.last is not None
    assert session.last.reasoning is None
    assert session.last.text
    held = session.engine.backend.tokens[: session.last.stats.n_prompt]
    closed = marker_ids("</think>\n\n", vocabulary_of(session))
    assert held[-len(closed) :] == closed
    assert (session.thinking.about() is None) == (template == SWITCHED)


def test_what_a_setting_cannot_do_is_said(engines: Callable[..., Engine], tmp_path: Path) -> None:
    with load(write_tiny(tmp_path / "plain.gguf"), options=EngineOptions(n_ctx=128, n_threads=1)) as engine:
        session = ChatSession(engine)
        assert session.thinking.about() is None
        for setting in ({"think": True}, {"think": False}, {"think_budget": 3}):
            assert "not known to think" in (ChatSession(engine, **setting).thinking.about() or "")  # type: ignore[arg-type]
    opened = engines(OPENED)
    assert "closed before it begins" in (ChatSession(opened, think=False).thinking.about() or "")
    assert "as it was trained to" in (ChatSession(opened, think=True).thinking.about() or "")
    assert ChatSession(opened, think_budget=5).thinking.about() is None
    assert ChatSession(engines(SWITCHED), think=True).thinking.about() is None


def test_the_template_drops_old_thoughts_from_the_prompt(
    engines: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three turns, as the template itself would write them."""
    import jinja2

    session = ChatSession(engines(SWITCHED), sampling=VARIED, think_budget=6)
    vocabulary = vocabulary_of(session)
    opening = marker_ids("<think>\n", vocabulary)
    monkeypatch.setattr(Thinking, "begin", lambda _: (opening, True))  # as a trained one would begin
    for question in ("hat", "tin", "the end"):
        say(session, question, max_tokens=24)
    assert session.last is not None
    assert all(message.reasoning for message in session.messages[1::2])
    asked = session.messages[:-1]
    given = [
        {"role": m.role, "content": m.content} | ({"reasoning_content": m.reasoning} if m.reasoning else {})
        for m in asked
    ]
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    written = environment.from_string(SWITCHED).render(messages=given, add_generation_prompt=True)
    assert "think" not in written
    n_prompt = session.last.stats.n_prompt - len(opening)
    held = session.engine.backend.tokens[:n_prompt]
    assert held == marker_ids(written, vocabulary)


def test_a_drafter_that_thinks_drafts_no_thoughts_for_a_target_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_tiny(tmp_path / "target.gguf", vocab="spm")
    drafter = write_tiny(tmp_path / "drafter.gguf", chat_template=SWITCHED, added=ADDED)
    options = EngineOptions(n_ctx=256, n_draft=4, fixed=True, copy=False, learn="off", n_threads=1)
    with load(target, drafter, options) as engine:
        session = ChatSession(engine)
        assert engine.draft_model is not None
        own = engine.draft_prompt([Message("user", "hat")], think=False)
        assert own is not None
        closed = marker_ids("<think>\n\n</think>\n\n", engine.draft_model.vocabulary)
        assert own[-len(closed) :] == closed
        asked = list[bool | None]()

        def prompt(_: Engine, messages: Sequence[Message], *, think: bool | None = None) -> list[int]:
            asked.append(think)
            return own

        monkeypatch.setattr(Engine, "draft_prompt", prompt)
        say(session, max_tokens=4)
        assert asked == [False]
