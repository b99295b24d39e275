"""What the browser keeps, and that the page works where it keeps nothing."""

from __future__ import annotations

import json

import pytest
from browser import Browser
from page_visitor import Visitor
from scripted_api import ScriptedApi

STORED = "Object.entries(localStorage)"


def test_chats_are_there_after_a_reload_the_newest_first(visitor: Visitor) -> None:
    visitor.ask_and_wait("One")
    visitor.tab.click("#new-chat")
    visitor.ask_and_wait("Two")
    visitor.come()
    assert visitor.chats() == ["Two", "One"]
    visitor.tab.click("#chats li:nth-child(2) .chat")
    assert visitor.answer() == "Hello."
    assert visitor.tab.text(".bubble") == "One"


def test_the_newest_fifty_are_kept(visitor: Visitor) -> None:
    messages = [{"role": "user", "content": "x"}]
    for number in range(60):
        chat = json.dumps({"id": str(number), "at": number + 1, "title": f"Chat {number}", "messages": messages})
        visitor.tab.js(f"localStorage.setItem('edgellm.chat.{number}', {json.dumps(chat)})")
    visitor.come()
    assert visitor.chats() == [f"Chat {number}" for number in range(59, 9, -1)]
    visitor.ask_and_wait("New")
    assert visitor.chats()[:2] == ["New", "Chat 59"]
    assert len(visitor.tab.js(STORED)) == 50


def test_old_chats_make_room_where_there_is_none(visitor: Visitor) -> None:
    messages = [{"role": "user", "content": "x"}]
    chat = json.dumps({"id": "old", "at": 1, "title": "Old", "messages": messages})
    visitor.tab.js(f"localStorage.setItem('edgellm.chat.old', {json.dumps(chat)})")
    fill = "try { localStorage.setItem('fill' + i, 'x'.repeat(n)); } catch { n >>= 1; }"
    visitor.tab.js(f"(() => {{ let n = 1 << 20; for (let i = 0; n >= 1; i++) {fill} }})()")
    visitor.come()
    assert visitor.chats() == ["Old"]
    visitor.ask_and_wait("Hi")
    assert visitor.chats()[0] == "Hi"


def test_all_chats_are_cleared_after_a_question(visitor: Visitor) -> None:
    visitor.ask_and_wait("One")
    visitor.tab.click("#clear-chats")
    visitor.tab.press("Escape")
    assert visitor.chats() == ["One"]
    visitor.tab.click("#clear-chats")
    visitor.tab.click("#confirm-yes")
    visitor.tab.wait("document.querySelectorAll('.chat').length === 0")
    assert visitor.tab.js(f"{STORED}.filter(([name]) => name.startsWith('edgellm.chat'))") == []
    assert visitor.tab.js("document.querySelectorAll('article').length") == 0


def test_one_chat_is_deleted(visitor: Visitor) -> None:
    visitor.ask_and_wait("One")
    visitor.tab.click("#new-chat")
    visitor.ask_and_wait("Two")
    visitor.tab.click("#chats li:nth-child(2) [aria-label='Delete “One”']")
    visitor.tab.click("#confirm-yes")
    visitor.tab.wait("document.querySelectorAll('.chat').length === 1")
    visitor.come()
    assert visitor.chats() == ["Two"]


def test_the_key_is_kept_in_the_tab_alone(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.set(api_key="sesame", system="Kept.")
    visitor.come()
    visitor.ask_and_wait("Hi")
    assert api.keys[-1] == "Bearer sesame"
    assert api.bodies[-1]["messages"][0]["content"] == "Kept."
    assert "sesame" not in json.dumps(visitor.tab.js(STORED))
    visitor.set(api_key="")
    assert visitor.tab.js("sessionStorage.length") == 0


@pytest.mark.parametrize("names", [["localStorage", "sessionStorage"], ["sessionStorage"]])
def test_the_page_works_where_storage_is_refused(browser: Browser, api: ScriptedApi, names: list[str]) -> None:
    tab = browser.tab()
    for name in names:
        refuse = "get() { throw new DOMException('no', 'SecurityError'); }"
        tab.before_each_page(f"Object.defineProperty(window, '{name}', {{ {refuse} }})")
    visitor = Visitor(tab, api.url).come()
    visitor.set(api_key="sesame", temperature="0.5")
    assert visitor.ask_and_wait("Hi") == "Hello."
    assert (api.keys[-1], api.bodies[-1]["temperature"]) == ("Bearer sesame", 0.5)
    assert visitor.chats() == ["Hi"]
    assert ("keeps nothing" in tab.text("#storage-note")) == ("localStorage" in names)
    assert tab.problems == []
    tab.close()


def test_what_others_stored_at_this_address_is_not_believed(visitor: Visitor) -> None:
    question = {"role": "user", "content": "q"}
    answer = {"role": "assistant", "content": "a", "thoughts": 7, "drafted": [5, 2], "facts": {"tokens": "x"}}
    odd = [question, answer | {"ended": "?", "error": []}]
    chats = {
        "a": "{",
        "b": "7",
        "c": json.dumps({"id": "other", "at": 1, "messages": [question]}),
        "d": json.dumps({"id": "d", "at": "x", "messages": [question]}),
        "e": json.dumps({"id": "e", "at": 1, "messages": []}),
        "f": json.dumps({"id": "f", "at": 1, "messages": [{"role": "system", "content": "x"}]}),
        "g": json.dumps({"id": "g", "at": 1, "title": {}, "messages": odd}),
    }
    for name, value in chats.items():
        visitor.tab.js(f"localStorage.setItem('edgellm.chat.{name}', {json.dumps(value)})")
    visitor.tab.js('localStorage.setItem(\'edgellm.settings\', \'{"temperature": "hot", "system": 7}\')')
    visitor.come()
    assert visitor.chats() == ["[object Object]"]
    visitor.tab.click("#chats .chat")
    assert visitor.answer() == "a"
    assert visitor.ask_and_wait("Hi") == "Hello."


def test_a_chat_appears_in_another_tab(browser: Browser, visitor: Visitor) -> None:
    other = Visitor(browser.tab(context=visitor.tab.context), visitor.url).come()
    visitor.ask_and_wait("Hi")
    other.tab.wait("document.querySelectorAll('.chat').length === 1")
    visitor.tab.call("Page.bringToFront")
    visitor.tab.click("#clear-chats")
    visitor.tab.click("#confirm-yes")
    other.tab.wait("document.querySelectorAll('.chat').length === 0")
