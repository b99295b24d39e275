"""For every screen, every pair of hands, and eyes that cannot see."""

from __future__ import annotations

import pytest
from page_visitor import Visitor
from scripted_api import Gate, Refusal, ScriptedApi, choice

LONG = "\n\n".join(f"Paragraph {number}, which says something." for number in range(60))
AT_END = "(e => e.scrollHeight - e.clientHeight - e.scrollTop < 3)(document.querySelector('#scroller'))"
# WCAG 2: relative luminance and contrast, over the nearest background that is opaque.
CONTRAST = """(selector) => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (parts) => parts.slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const node = document.querySelector(selector);
  let under = node;
  while (rgb(getComputedStyle(under).backgroundColor)[3] < 255) under = under.parentElement;
  const [a, b] = [getComputedStyle(node).color, getComputedStyle(under).backgroundColor].map((c) => light(rgb(c)));
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
READ = ["#welcome p", ".name", "#storage-note", "#new-chat", "#model"]
READ_LATER = [".bubble", ".markdown p", ".markdown a", ".markdown code", ".markdown blockquote", ".facts", ".chat",
              "summary", "a .drafted", "blockquote .drafted", "figcaption",
              ".problem p", ".problem button"]  # fmt: skip
ANSWER = "A [link](https://e.org) and `code`.\n\n> quote\n\n```py\nx\n```\n"


def test_every_control_has_a_name(visitor: Visitor, api: ScriptedApi) -> None:
    api.script(choice({"reasoning_content": "Hm."}), ANSWER)
    visitor.ask_and_wait("Hi")
    visitor.tab.click("#open-settings")
    settings = visitor.tab.accessible()
    visitor.tab.press("Escape")
    controls = {
        "button",
        "textbox",
        "combobox",
        "checkbox",
        "link",
        "dialog",
        "log",
        "main",
        "navigation",
        "region",
        "switch",
    }
    nodes = [node for node in [*settings, *visitor.tab.accessible()] if node["role"] in controls]
    assert [node for node in nodes if not node["name"].strip()] == []
    assert {"button", "textbox", "combobox", "checkbox", "link", "dialog", "log"} <= {node["role"] for node in nodes}


def test_what_happens_is_said(visitor: Visitor, api: ScriptedApi) -> None:
    api.script("Part", Gate())
    visitor.ask("Hi")
    visitor.sees("Part")
    assert visitor.tab.js("document.querySelector('#log').ariaLive") == "polite"
    visitor.tab.press("Escape")
    visitor.sees("Stopped", "#status")
    visitor.ask_and_wait("Hi")
    visitor.sees("The answer is complete", "#status")
    api.script(Refusal(500, "Broken."))
    visitor.ask("Hi")
    visitor.tab.wait("document.querySelector('.answer [role=alert]')")


def test_all_is_reached_with_the_keyboard_and_seen_to_be(visitor: Visitor, api: ScriptedApi) -> None:
    api.script(ANSWER)
    visitor.ask_and_wait("Hi")
    reached, rings = [], []
    for _ in range(24):
        visitor.tab.press("Tab")
        reached.append(visitor.tab.js("(e => e.id || e.title || e.ariaLabel || e.localName)(document.activeElement)"))
        rings.append(
            visitor.tab.js(
                "(e => e.id === 'question' || getComputedStyle(e).outlineStyle !== 'none')(document.activeElement)"
            )
        )
    wanted = {
        "new-chat",
        "Hi",
        "clear-chats",
        "model",
        "open-settings",
        "Edit this question",
        "https://e.org/",
        "Code: py",
    }
    assert wanted | {"Copy this code", "Answer again", "question"} <= set(reached)
    assert all(ring for name, ring in zip(reached, rings, strict=True) if name != "body")


def test_a_dialog_closes_with_escape_and_gives_the_focus_back(visitor: Visitor) -> None:
    visitor.tab.js("document.querySelector('#open-settings').focus()")
    visitor.tab.press("Enter")
    visitor.tab.wait("document.querySelector('#settings').open")
    visitor.tab.press("Escape")
    visitor.tab.wait("!document.querySelector('#settings').open && document.activeElement.id === 'open-settings'")


@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_nothing_is_wider_than_the_screen(visitor: Visitor, api: ScriptedApi, width: int) -> None:
    visitor.tab.resize(width, 640, touch=width < 800)
    wide = "| " + " | ".join(f"column {i}" for i in range(20)) + " |\n|" + "--|" * 20 + "\n"
    api.script(f"{'x' * 500}\n\n`{'y' * 300}`\n\n```\n{'z' * 300}\n```\n\n{wide}\nhttps://e.org/{'u' * 300}")
    visitor.ask_and_wait("w" * 400)
    for place in ("document.documentElement", "document.querySelector('#scroller')"):
        assert visitor.tab.js(f"{place}.scrollWidth - {place}.clientWidth") == 0
    box = "document.querySelector('#question').getBoundingClientRect()"
    assert visitor.tab.js(f"[{box}.left >= 0, {box}.right <= innerWidth, {box}.bottom <= innerHeight]") == [True] * 3


def test_on_a_phone_the_chats_slide_over_and_away(visitor: Visitor) -> None:
    visitor.tab.resize(360, 640, touch=True)
    visitor.ask_and_wait("Hi")
    assert visitor.tab.js("document.querySelector('#drawer').inert")
    visitor.tab.click("#open-drawer")
    visitor.tab.wait("document.activeElement.id === 'close-drawer' && document.querySelector('#room').inert")
    visitor.tab.press("Escape")
    visitor.tab.wait("document.activeElement.id === 'open-drawer' && document.querySelector('#drawer').inert")


def test_on_a_phone_the_settings_are_saved_without_scrolling(visitor: Visitor) -> None:
    visitor.tab.resize(360, 560, touch=True)
    visitor.tab.click("#open-settings")
    button = "document.querySelector('#settings .strong-button')"
    place = f"(b => document.elementFromPoint(b.x + b.width / 2, b.bottom - 4))({button}.getBoundingClientRect())"
    assert visitor.tab.js(f"{place} === {button}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(visitor: Visitor, api: ScriptedApi, scheme: str) -> None:
    visitor.tab.prefer(color_scheme=scheme)
    found = {name: visitor.tab.js(f"({CONTRAST})({name!r})") for name in READ}
    api.script(choice({"reasoning_content": "Hm."}), choice({"content": ANSWER, "drafted": [[0, len(ANSWER)]]}))
    visitor.ask_and_wait("Hi")
    visitor.show_drafts()
    api.script(Refusal(500, "Broken."))
    visitor.ask("Hi")
    visitor.tab.wait("document.querySelector('.answer .problem button')")
    visitor.tab.js("document.querySelector('#server-error').remove()")
    found |= {name: visitor.tab.js(f"({CONTRAST})({name!r})") for name in READ_LATER}
    assert {name: round(ratio, 2) for name, ratio in found.items() if ratio < 4.5} == {}


def test_both_schemes_differ(visitor: Visitor) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        visitor.tab.prefer(color_scheme=scheme)
        papers.add(visitor.tab.js("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2


def test_nothing_moves_for_who_wants_that(visitor: Visitor, api: ScriptedApi) -> None:
    gate = Gate()
    api.script(gate, "x")
    visitor.ask("Hi")
    visitor.sees("Reading")
    moving = "document.getAnimations().filter((each) => each.playState === 'running').length"
    assert visitor.tab.js(moving) > 0
    visitor.tab.prefer(reduced_motion="reduce")
    assert visitor.tab.js(moving) == 0
    gate.set()
    visitor.answer()


def test_the_newest_text_is_followed_until_the_reader_scrolls_up(visitor: Visitor, api: ScriptedApi) -> None:
    first, second = Gate(), Gate()
    api.script(LONG, first, f"\n\n{LONG}\n\nMiddle.", second, f"\n\n{LONG}\n\nEnd.")
    visitor.ask("Hi")
    visitor.sees("Paragraph 59")
    visitor.tab.wait(AT_END)
    first.set()
    visitor.sees("Middle.")
    visitor.tab.wait(AT_END)
    visitor.tab.wheel("#scroller", -300)
    visitor.tab.wait(f"!{AT_END} && !document.querySelector('#to-newest').hidden")
    visitor.tab.wait("new Promise((done) => setTimeout(() => done(true), 300))")  # the wheel has come to rest
    place = visitor.tab.js("document.querySelector('#scroller').scrollTop")
    second.set()
    visitor.answer()
    assert visitor.tab.js("document.querySelector('#scroller').scrollTop") == place
    visitor.tab.click("#to-newest")
    visitor.tab.wait(f"{AT_END} && document.querySelector('#to-newest').hidden")


def test_a_long_answer_is_added_to_and_not_drawn_again(visitor: Visitor, api: ScriptedApi) -> None:
    """Ten thousand tokens: what was laid down while it came is still there when it is over."""
    gate = Gate()
    paragraph = "Some *words* of an answer that goes on, with `code` and more words in it to be read.\n\n"
    api.script(paragraph * 10, gate, *[paragraph * 10] * 49)
    visitor.ask("Hi")
    visitor.tab.wait("document.querySelectorAll('.markdown > p').length >= 9")
    visitor.tab.js("(window.first = [...document.querySelectorAll('.markdown > p')].slice(0, 9), 1)")
    gate.set()
    visitor.answer()
    assert visitor.tab.js("document.querySelectorAll('.markdown > p').length") == 500
    assert visitor.tab.js("window.first.every((each, i) => each === document.querySelectorAll('.markdown > p')[i])")
