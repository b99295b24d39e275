"""What goes wrong is told in a sentence, with a way on."""

from __future__ import annotations

import pytest
from browser import Browser
from page_visitor import LAST_ANSWER, Visitor
from scripted_api import Cut, Gate, Refusal, ScriptedApi, Step, choice

RETRY = ".answer:last-child .problem button"


def told(visitor: Visitor) -> str:
    visitor.tab.wait(f"{LAST_ANSWER}?.querySelector('.problem [dir]')")
    return visitor.tab.text(".answer:last-child .problem p")


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (Refusal(500, "The engine stopped"), "The engine stopped."),
        (Refusal(400, "<img src=x onerror=alert(1)>!"), "<img src=x onerror=alert(1)>!"),
        (Refusal(429, "All places are taken."), "All places are taken."),
        (Refusal(429, "Come back", {"retry-after": "3600"}), "Come back."),
        (Refusal(503, ""), "The server answered with status 503."),
        ({"error": {"message": "It broke", "code": 500}}, "It broke."),
        ({"error": True}, "The server failed within the answer."),
    ],
)
def test_an_error_is_told_and_tried_again(visitor: Visitor, api: ScriptedApi, step: Step, sentence: str) -> None:
    api.script(step)
    visitor.ask("Hi")
    assert told(visitor) == sentence
    visitor.tab.click(RETRY)
    visitor.sees("Hello.")
    assert len(api.bodies) == 2
    assert api.bodies[0] == api.bodies[1]
    assert visitor.tab.js("document.querySelectorAll('.problem [dir]').length") == 0


def test_a_connection_that_is_cut_leaves_what_came(visitor: Visitor, api: ScriptedApi) -> None:
    gate = Gate()
    api.script("Half of", gate, Cut)
    visitor.ask("Hi")
    visitor.sees("Half of")
    gate.set()
    assert told(visitor) == "The connection was lost before the answer was complete."
    assert visitor.tab.text(".answer:last-child .markdown") == "Half of"
    visitor.tab.click(RETRY)
    assert visitor.answer() == "Hello."


def test_a_server_that_is_gone_is_told(visitor: Visitor, api: ScriptedApi) -> None:
    api.stop()
    visitor.ask("Hi")
    assert told(visitor) == "The server cannot be reached. Is it still running?"


def test_a_busy_server_is_asked_again_when_it_says(visitor: Visitor, api: ScriptedApi) -> None:
    for _ in range(2):
        api.script(Refusal(429, "Full.", {"retry-after": "1"}))
    visitor.ask("Hi")
    visitor.sees("The server is busy. Asking again in 1 s.")
    assert visitor.answer() == "Hello."
    assert len(api.bodies) == 3


def test_who_cannot_wait_asks_a_busy_server_at_once_or_gives_up(visitor: Visitor, api: ScriptedApi) -> None:
    for _ in range(2):
        api.script(Refusal(503, "Loading.", {"retry-after": "50"}))
    visitor.ask("Hi")
    visitor.sees("Asking again in")
    visitor.tab.click(".waiting button")
    while len(api.bodies) < 2:
        visitor.tab.js("1")
    visitor.sees("Asking again in 50 s")
    visitor.tab.press("Escape")
    visitor.answer()
    assert len(api.bodies) == 2


def test_a_busy_server_is_not_asked_for_ever(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.tab.js("(window.setTimeout = new Proxy(setTimeout, { apply: (f, it, [run]) => f(run, 1) }), 1)")
    for _ in range(9):
        api.script(Refusal(429, "Full.", {"retry-after": "1"}))
    visitor.ask("Hi")
    assert told(visitor) == "Full."
    assert len(api.bodies) == 5


def test_a_server_that_wants_a_key_is_given_one(visitor: Visitor, api: ScriptedApi) -> None:
    api.key = "sesame"
    visitor.ask("Hi")
    assert told(visitor) == "This server asks for an API key."
    visitor.tab.click(RETRY)
    visitor.tab.wait("document.querySelector('#settings').open")
    visitor.tab.press("Escape")
    visitor.set(api_key="sesame")
    assert visitor.ask_and_wait("Hi again") == "Hello."
    assert [turn["content"] for turn in api.bodies[-1]["messages"]] == ["Hi\n\nHi again"]


def test_a_key_is_asked_for_where_even_the_models_need_one(browser: Browser, api: ScriptedApi) -> None:
    api.key = "sesame"
    tab = browser.tab()
    tab.go(api.url)
    tab.wait("!document.querySelector('#server-error').hidden")
    assert tab.text("#server-error p") == "This server asks for an API key."
    Visitor(tab, api.url).set(api_key="sesame")
    tab.wait(
        "document.querySelector('#server-error').hidden && document.querySelector('#model').value === 'tiny-model'"
    )
    tab.close()


def test_an_answer_without_an_end_is_incomplete(visitor: Visitor, api: ScriptedApi) -> None:
    event = 'data: {"choices":[{"delta":{"content":"So"}}]}\n\n'
    reply = f"new Response({event!r}, {{headers: {{'content-type': 'text/event-stream'}}}})"
    visitor.tab.js(f"(window.fetch = async () => {reply}, 1)")
    visitor.ask("Hi")
    assert told(visitor) == "The connection was lost before the answer was complete."
    assert visitor.tab.text(".answer:last-child .markdown") == "So"


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        ("<html>", "text/html", "The server did not stream its answer; is another program behind this address?"),
        ("data: {broken\n\n", "text/event-stream", "The server sent something that is no part of an answer."),
        ("data: 7\n\n", "text/event-stream", "The server sent something that is no part of an answer."),
    ],
)
def test_an_answer_that_is_none_is_told(visitor: Visitor, body: str, kind: str, sentence: str) -> None:
    visitor.tab.js(f"(window.fetch = async () => new Response({body!r}, {{headers: {{'content-type': {kind!r}}}}}), 1)")
    visitor.ask("Hi")
    assert told(visitor) == sentence


def test_events_are_read_however_they_are_cut(visitor: Visitor) -> None:
    """Comments, CRLF, data in two lines, no space after the colon, and characters cut in their bytes."""
    events = (
        ': ping\r\n\r\nevent: x\r\ndata:{"choices":[{"delta":\r\ndata: {"content":"é🙂"}}]}\r\n\r\ndata: [DONE]\n\n'
    )
    visitor.tab.js(
        f"(window.fetch = async () => {{ const bytes = new TextEncoder().encode({events!r}); let at = 0;"
        "const pull = (to) => (at < bytes.length ? to.enqueue(bytes.slice(at, ++at)) : to.close());"
        "return new Response(new ReadableStream({ pull }), { headers: { 'content-type': 'text/event-stream' } }); }, 1)"
    )
    assert visitor.ask_and_wait("Hi") == "é🙂"


def test_an_answer_that_a_reload_cut_is_kept(visitor: Visitor, api: ScriptedApi) -> None:
    api.script(choice({"content": "Kept part"}), Gate())
    visitor.ask("Hi")
    visitor.sees("Kept part")
    visitor.come()
    visitor.tab.click("#chats .chat")
    assert visitor.answer() == "Kept part"
    assert "stopped" in visitor.tab.text(".answer .facts")
