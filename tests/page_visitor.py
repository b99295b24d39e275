"""Somebody who chats on the page."""

from __future__ import annotations

import json
from pathlib import Path

from browser import Tab

LAST_ANSWER = "document.querySelector('.answer:last-child')"


class Visitor:
    """A tab on the page, and the words for what is done there."""

    def __init__(self, tab: Tab, url: str) -> None:
        self.tab, self.url = tab, url

    def come(self) -> Visitor:
        self.tab.go(self.url)
        self.tab.wait("document.activeElement?.id === 'question' && document.querySelector('#model').options[0].value")
        return self

    def ask(self, text: str) -> None:
        self.tab.js("document.querySelector('#question').focus()")
        self.tab.type(text)
        self.tab.press("Enter")

    def ask_and_wait(self, text: str) -> str:
        self.ask(text)
        return self.answer()

    def answer(self) -> str:
        """The last answer, once it is over."""
        self.tab.wait(f"{LAST_ANSWER}?.querySelector('.tools:not([hidden])')")
        return self.tab.text(".answer:last-child .markdown")

    def sees(self, text: str, selector: str = "#log") -> None:
        self.tab.wait(f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})")

    def set(self, **values: str) -> None:
        """set(temperature="0.2"): the fields of the settings, saved with Enter in the last."""
        self.tab.click("#open-settings")
        for name, value in values.items():
            self.tab.js(f"document.getElementById({json.dumps(name.replace('_', '-'))}).value = {json.dumps(value)}")
        self.tab.js("document.querySelector('#temperature').focus()")
        self.tab.press("Enter")

    def show_drafts(self) -> None:
        self.tab.click("#open-settings")
        self.tab.click("#drafts")
        self.tab.click("#settings .strong-button")

    def chats(self) -> list[str]:
        titles: list[str] = self.tab.js("[...document.querySelectorAll('.chat')].map(e => e.textContent)")
        return titles

    def picture(self, path: Path) -> None:
        self.tab.picture(path)
