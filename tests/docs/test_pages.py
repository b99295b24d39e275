"""What pages say of other pages and of the code is so: links, anchors, paths, the order of the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from doc_pages import LANGUAGES, PAGES, ROOT, anchors, blocks, links, prose

_PATH = r"(?:app|benchmarks|cli|docs|export|memory|runtime|server|tests)/[\w./-]*"
BROUGHT_IN = {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md"}  # docs/site_pages.py


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_go_to_pages_and_headings_that_are_there(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        if "://" in name:
            continue
        target = BROUGHT_IN.get(name) or (page.parent / name if name else page)
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_paths_of_the_code_exist() -> None:
    """Those in code spans, and those of diagrams."""
    named = {(page.name, path) for page in PAGES for path in re.findall(rf"`({_PATH})`", prose(page))}
    diagrams = [(page, block.text) for page in PAGES for block in blocks(page) if block.language == "text"]
    named |= {(page.name, path) for page, text in diagrams for path in re.findall(rf"(?<!\S){_PATH}", text)}
    assert len(named) > 50
    assert {(page, path) for page, path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.id}: a block of {block.language or 'no language'}"
    indented = re.findall(r"^ {4,}(?:\$ )?edgellm .*$", prose(page), re.M)
    assert indented == [], "commands stand in fenced blocks, where they are tested"


def test_every_page_is_in_the_site() -> None:
    document = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert document["strict"] is True

    def pages(entries: list[object]) -> set[str]:
        found: set[str] = set()
        for entry in entries:
            assert isinstance(entry, dict)
            for value in entry.values():
                found |= pages(value) if isinstance(value, list) else {value}
        return found

    assert pages(document["nav"]) == {page.name for page in (ROOT / "docs").glob("*.md")} | set(BROUGHT_IN)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
