"""The pages that people read, cut into what tests look at: fenced blocks, links, headings, command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"sh", "console", "python", "text"}
_FENCE = re.compile(r"^(`{3,})(\w*)\s*$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int  # of the opening fence, from 1
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True, slots=True)
class Invocation:
    """A command as a shell would start it."""

    block: Block
    line: str
    variables: dict[str, str]
    words: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.block.page.name}: {' '.join(self.words)}"


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks; a fence of more backticks may hold shorter ones.

    Raises:
        ValueError: a fence that is never closed.
    """
    fence, language, begun, lines = "", "", 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        found = _FENCE.match(line)
        if not fence and found:
            fence, language, begun, lines = found[1], found[2], number, []
        elif fence and found and found[1] == fence and not found[2]:
            yield Block(page, begun, language, "\n".join(lines) + "\n")
            fence = ""
        elif fence:
            lines.append(line)
    if fence:
        raise ValueError(f"{page}:{begun}: the fence is never closed")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for block in reversed([*blocks(page)]):
        del lines[block.line - 1 : block.line + block.text.count("\n") + 1]
    return "\n".join(lines) + "\n"


def invocations(block: Block) -> Iterator[Invocation]:
    """Every program that a block of commands starts: each line of `sh`, those behind `$ ` of `console`."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in lines:
        words: list[str] = []
        for word in [*_words(line), ";"]:
            if word in {"|", ";", "&&"}:
                if words:
                    n = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
                    variables = dict(word.split("=", 1) for word in words[:n])
                    yield Invocation(block, line, variables, tuple(words[n:]))
                words = []
            else:
                words.append(word)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Where the page's links and pictures go."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))
