"""One Chromium for all tests; a server, and a visitor with storage of its own, for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, chromium
from page_visitor import Visitor
from scripted_api import ScriptedApi


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        pytest.skip("the page is tried in Chromium, and none is installed (or CHROMIUM does not name it)")
    browser = Browser(program)
    yield browser
    browser.close()


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi() as api:
        yield api


@pytest.fixture(scope="module")
def shared_api() -> Iterator[ScriptedApi]:
    """For what only reads from it."""
    with ScriptedApi() as api:
        yield api


@pytest.fixture
def visitor(browser: Browser, api: ScriptedApi) -> Iterator[Visitor]:
    yield from visit(browser, api)


@pytest.fixture(scope="module")
def shared_visitor(browser: Browser, shared_api: ScriptedApi) -> Iterator[Visitor]:
    """For what leaves the page as it was."""
    yield from visit(browser, shared_api)


def visit(browser: Browser, api: ScriptedApi) -> Iterator[Visitor]:
    """On the page. Nothing but the server may have been asked, no script may have failed, no policy been broken."""
    tab = browser.tab()
    yield Visitor(tab, api.url).come()
    tab.js("1")  # what happened until now has been told
    assert [url for url in tab.asked if not url.startswith(api.url)] == []
    assert [problem for problem in tab.problems if not problem.startswith("Failed to load resource")] == []
    tab.close()
