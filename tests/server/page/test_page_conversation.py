"""A conversation on the page, as somebody has it."""

from __future__ import annotations

from page_visitor import LAST_ANSWER, Visitor
from scripted_api import Gate, ScriptedApi, choice

TIMINGS = {
    **choice({}, "stop"),
    "timings": {
        "prompt_n": 31,
        "predicted_n": 1214,
        "predicted_per_second": 18.37,
        "draft_n": 160,
        "draft_n_accepted": 131,
    },
}


def turns(api: ScriptedApi) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in api.bodies[-1]["messages"]]


def test_an_answer_is_shown_while_it_comes(visitor: Visitor, api: ScriptedApi) -> None:
    gate = Gate()
    api.script("Hello **wor", gate, "ld**, and *more*.")
    visitor.ask("Hi")
    visitor.sees("Hello wor")
    assert visitor.tab.js(f"{LAST_ANSWER}.querySelector('strong').textContent") == "wor"
    assert visitor.tab.js("document.querySelector('#log').ariaBusy") == "true"
    gate.set()
    assert visitor.answer() == "Hello world, and more."
    assert visitor.tab.js("document.querySelector('#log').ariaBusy") == "false"


def test_the_server_is_asked_for_a_stream_with_its_usage(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.ask_and_wait("Hi")
    asked = {"model": "tiny-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    assert api.bodies == [{**asked, "stream_options": {"include_usage": True}}]
    assert api.keys == ["", ""]


def test_earlier_turns_are_sent_without_their_thoughts(visitor: Visitor, api: ScriptedApi) -> None:
    api.script(choice({"reasoning_content": "Secret."}), "First.")
    visitor.ask_and_wait("One")
    visitor.ask_and_wait("Two")
    assert turns(api) == [("user", "One"), ("assistant", "First."), ("user", "Two")]


def test_shift_and_enter_starts_a_line(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.tab.type("one")
    visitor.tab.press("Enter", shift=True)
    visitor.tab.type("two")
    visitor.tab.press("Enter")
    visitor.answer()
    assert turns(api) == [("user", "one\ntwo")]


def test_nothing_is_sent_where_nothing_was_written(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.tab.type("  ")
    visitor.tab.press("Enter")
    assert visitor.tab.js("document.querySelector('#send').disabled")
    visitor.ask_and_wait("x")
    assert len(api.bodies) == 1


def test_a_question_is_text_and_never_markup(visitor: Visitor) -> None:
    question = "<img src=x onerror=alert(1)> **b** </article>"
    visitor.ask_and_wait(question)
    assert visitor.tab.js("document.querySelector('.bubble').textContent") == question
    assert visitor.tab.js("document.querySelector('.bubble').childElementCount") == 0
    assert visitor.chats() == [question]


def test_escape_and_the_button_stop_an_answer_and_keep_what_came(visitor: Visitor, api: ScriptedApi) -> None:
    for number, stop in enumerate([lambda: visitor.tab.press("Escape"), lambda: visitor.tab.click("#stop")], 1):
        api.script(f"Part {number}", Gate())
        visitor.ask("Go")
        visitor.sees(f"Part {number}")
        stop()
        assert visitor.answer() == f"Part {number}"
        assert "stopped" in visitor.tab.text(".answer:last-child .facts")
        visitor.tab.wait("document.querySelector('#stop').hidden && document.activeElement.id === 'question'")
        while api.hung_up < number:  # the server is told by the closed connection
            visitor.tab.js("1")
    visitor.ask_and_wait("And?")
    assert turns(api)[:4] == [("user", "Go"), ("assistant", "Part 1"), ("user", "Go"), ("assistant", "Part 2")]


def test_the_last_question_is_edited_in_its_place(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.ask_and_wait("First")
    visitor.ask_and_wait("Secnd")
    visitor.tab.click(".question:nth-last-child(2) button")
    assert visitor.tab.js("document.querySelector('#question').value") == "Secnd"
    visitor.tab.js("document.querySelector('#question').value = ''")
    api.script("Better.")
    visitor.tab.type("Second")
    visitor.tab.press("Enter")
    visitor.sees("Better.")
    assert turns(api) == [("user", "First"), ("assistant", "Hello."), ("user", "Second")]
    assert visitor.tab.js("document.querySelectorAll('article').length") == 4


def test_an_edit_is_begun_with_the_arrow_and_dropped_with_escape(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.ask_and_wait("First")
    visitor.tab.press("ArrowUp")
    assert visitor.tab.js("document.querySelector('#question').value") == "First"
    visitor.sees("You are editing", "#composer")
    visitor.tab.press("Escape")
    assert visitor.tab.js("document.querySelector('#question').value") == ""
    assert visitor.tab.js("document.querySelector('#editing').hidden")
    visitor.ask_and_wait("More")
    assert len(turns(api)) == 3


def test_an_answer_can_be_had_again(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.ask_and_wait("One")
    api.script("Another.")
    visitor.tab.click(".answer:last-child [aria-label='Answer again']")
    visitor.sees("Another.")
    assert turns(api) == [("user", "One")]
    assert visitor.tab.js("document.querySelectorAll('article').length") == 2


def test_thoughts_are_folded_and_apart(visitor: Visitor, api: ScriptedApi) -> None:
    gate = Gate()
    api.script(choice({"reasoning_content": "Let me <b>think"}), gate, choice({"reasoning_content": "</b>."}), "Done.")
    visitor.ask("Hi")
    visitor.sees("Thinking…")
    gate.set()
    assert visitor.answer() == "Done."
    assert visitor.tab.js(f"{LAST_ANSWER}.querySelector('details').open") is False
    visitor.tab.click(".answer summary")
    assert visitor.tab.text(".answer .thought") == "Let me <b>think</b>."


def test_what_an_answer_cost_stands_under_it(visitor: Visitor, api: ScriptedApi) -> None:
    api.script("Hello", TIMINGS)
    visitor.ask_and_wait("Hi")
    facts = visitor.tab.js("[...document.querySelectorAll('.facts span')].map((each) => each.textContent)")
    assert facts[:2] == ["1,214 tokens", "18.4 tokens/s"]
    assert facts[2].startswith("first after 0.")
    assert facts[3:] == ["160 drafted, 131 accepted"]


def test_a_server_that_tells_little_is_not_filled_in_for(visitor: Visitor, api: ScriptedApi) -> None:
    api.script(
        "Hello", {**choice({}, "length"), "timings": {"predicted_n": "many", "draft_n": -1, "predicted_ms": None}}
    )
    visitor.ask_and_wait("Hi")
    facts = visitor.tab.text(".facts")
    assert ("7 tokens" in facts, "drafted" in facts, "NaN" in facts, "cut at the most tokens" in facts) == (
        *(True, False, False, True),
    )


def test_drafted_tokens_are_tinted_on_request(visitor: Visitor, api: ScriptedApi) -> None:
    """Offsets count code points, of which an emoji is one."""
    api.script(
        choice({"content": "🙂 one two", "drafted": [[2, 5], [6, 9]]}),
        choice({"content": " three", "drafted": [[0, 4]]}),
    )
    visitor.ask_and_wait("Hi")
    spans = "[...document.querySelectorAll('.drafted')]"
    assert visitor.tab.js(f"{spans}.map((each) => each.textContent)") == ["one", "two thr"]
    tint = f"getComputedStyle({spans}[0]).backgroundColor"
    assert visitor.tab.js(tint) == "rgba(0, 0, 0, 0)"
    visitor.show_drafts()
    assert visitor.tab.js(tint) != "rgba(0, 0, 0, 0)"


def test_marks_of_drafts_that_make_no_sense_are_passed_over(visitor: Visitor, api: ScriptedApi) -> None:
    wrong = [[3, 1], [-1, 2], ["a", "b"], None, 7, [0, 1], [0.5, 2], [2, 1e9]]
    api.script(choice({"content": "abcdef", "drafted": wrong}), choice({"content": "gh", "drafted": "all"}))
    assert visitor.ask_and_wait("Hi") == "abcdefgh"
    assert visitor.tab.js("[...document.querySelectorAll('.drafted')].map((each) => each.textContent)") == ["a", "cdef"]


def test_settings_are_sent(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.set(system="Be brief.", temperature="0,25", max_tokens="64", thinking="off", api_key="sesame")
    visitor.ask_and_wait("Hi")
    body = api.bodies[-1]
    assert turns(api) == [("system", "Be brief."), ("user", "Hi")]
    assert (body["temperature"], body["max_tokens"]) == (0.25, 64)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert api.keys[-1] == "Bearer sesame"


def test_a_wrong_number_is_told_and_not_saved(visitor: Visitor, api: ScriptedApi) -> None:
    visitor.set(temperature="warm", max_tokens="0")
    visitor.sees("A number from 0 on", "#settings")
    visitor.sees("A whole number from 1 on", "#settings")
    visitor.tab.press("Escape")
    visitor.ask_and_wait("Hi")
    assert api.bodies[-1].keys() == {"model", "messages", "stream", "stream_options"}


def test_the_model_that_is_chosen_answers_and_stays_chosen(visitor: Visitor, api: ScriptedApi) -> None:
    choose = "((menu) => { menu.value = 'other/model:q4'; menu.dispatchEvent(new Event('change')); })"
    visitor.tab.js(f"{choose}(document.querySelector('#model'))")
    visitor.come()
    visitor.ask_and_wait("Hi")
    assert api.bodies[-1]["model"] == "other/model:q4"


def test_two_chats_are_answered_at_once(visitor: Visitor, api: ScriptedApi) -> None:
    gate = Gate()
    api.script("Slow ", gate, "answer.")
    visitor.ask("One")
    visitor.sees("Slow")
    visitor.tab.click("#new-chat")
    assert visitor.ask_and_wait("Two") == "Hello."
    assert turns(api) == [("user", "Two")]
    visitor.tab.click("#chats li:nth-child(2) .chat")
    visitor.sees("Slow")
    gate.set()
    assert visitor.answer() == "Slow answer."


def test_code_is_copied_as_it_is(visitor: Visitor, api: ScriptedApi) -> None:
    api.script("```py\nx = '<b>'\n\ny\n```\n")
    visitor.ask_and_wait("Hi")
    visitor.tab.js("(navigator.clipboard.writeText = async (text) => { window.copied = text; }, 1)")
    visitor.tab.click("figcaption button")
    assert visitor.tab.wait("window.copied") == "x = '<b>'\n\ny"
    visitor.tab.click("[aria-label='Copy this answer']")
    assert visitor.tab.wait("window.copied.includes('`') && window.copied") == "```py\nx = '<b>'\n\ny\n```\n"
