"""Markdown: what it becomes, that it becomes the same however it arrives, and that no text gets out of hand."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from page_visitor import Visitor

RENDER = """(async (text, size, drafted) => {
  const [{ Markdown }, { Ink }] = await Promise.all([import("/page/markdown.js"), import("/page/inline.js")]);
  const root = document.createElement("div");
  const markdown = new Markdown(root, new Ink(drafted));
  for (let at = 0; at < text.length; at += size) {
    markdown.append(text.slice(at, at + size));
    markdown.draw();
  }
  markdown.draw(true);
  document.getElementById("log").replaceChildren(root);
  root.querySelectorAll("figcaption").forEach((each) => each.remove());
  root.normalize();
  return %s;
})"""
ALLOWED = {
    *(
        "a",
        "blockquote",
        "br",
        "code",
        "em",
        "figure",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "input",
        "li",
        "ol",
        "p",
        "pre",
        "s",
    ),
    *("span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul", "div"),
}
ATTRIBUTES = {
    *("class", "dir", "href", "rel", "target", "title", "start", "tabindex", "role", "aria-label", "type", "disabled"),
    *("checked", "scope"),
}
NOISE = r' (?:dir|class|tabindex|role|aria-label|rel|target|title|scope|type|disabled|start)="[^"]*"'


def render(visitor: Visitor, text: str, size: int = 1 << 30, drafted: list[int] | None = None, show: str = "") -> Any:
    script = RENDER % (show or "root.innerHTML")
    return visitor.tab.js(f"{script}({json.dumps(text)}, {size}, {json.dumps(drafted or [])})")


def html(visitor: Visitor, text: str) -> str:
    return re.sub(NOISE, "", render(visitor, text))


CASES = [
    ("plain", "<p>plain</p>"),
    ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    ("# A\n## B #\n###### C", "<h3>A</h3><h4>B</h4><h6>C</h6>"),
    ("#no heading", "<p>#no heading</p>"),
    ("**b** *i* ***bi*** ~~s~~ __b__ _i_", "<p><strong>b</strong> <em>i</em> <em><strong>bi</strong></em> <s>s</s> "
     "<strong>b</strong> <em>i</em></p>"),
    ("**b *i***", "<p><strong>b <em>i</em></strong></p>"),
    ("snake_case_name 2*3*4 a * b", "<p>snake_case_name 2*3*4 a * b</p>"),
    ("**Note:**text", "<p><strong>Note:</strong>text</p>"),
    ("**open and *never closed", "<p>**open and *never closed</p>"),
    ("`a*b*` ``c`d`` `open", "<p><code>a*b*</code> <code>c`d</code> `open</p>"),
    (r"\*no\* \_no\_ \# \a", r"<p>*no* _no_ # \a</p>"),
    ("- a\n- b\n  - c\n    - d\n- e", "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p><ul><li><p>d</p></li></ul></li>"
     "</ul></li><li><p>e</p></li></ul>"),
    ("1. a\n\n2. b\n   more\n\ntext", "<ol><li><p>a</p></li><li><p>b<br>more</p></li></ol><p>text</p>"),
    ("1. a\n  - b\n2. c", "<ol><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ol>"),
    ("In\n1986. it was", "<p>In<br>1986. it was</p>"),
    ("```python\nx = 1\n\n# no heading\n```\nafter", "<figure><pre><code>x = 1\n\n# no heading\n</code></pre></figure>"
     "<p>after</p>"),
    ("1. do\n   ```\n   a\n     b\n   ```\n2. then", "<ol><li><p>do</p>"
     "<figure><pre><code>a\n  b\n</code></pre></figure></li><li><p>then</p></li></ol>"),
    ("1. do\n   ```\nnot indented\n   ```\n2. then", "<ol><li><p>do</p>"
     "<figure><pre><code>not indented\n</code></pre></figure></li><li><p>then</p></li></ol>"),
    ("````\n```\n````", "<figure><pre><code>```\n</code></pre></figure>"),
    ("```\nnever closed", "<figure><pre><code>never closed\n</code></pre></figure>"),
    ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
    ("a\n\n---\n\n***\nb", "<p>a</p><hr><hr><p>b</p>"),
    ("| a | b |\n|:--|--:|\n| 1 | `2\\|3` |\n| 4 |\nend", "<div><table><thead><tr><th>a</th>"
     "<th>b</th></tr></thead><tbody><tr><td>1</td><td><code>2\\|3</code></td></tr><tr><td>4</td><td></td></tr></tbody></table></div><p>end</p>"),
    ("a | b\nno rule", "<p>a | b<br>no rule</p>"),
    ("[t](https://e.org/a_(b)) <https://e.org> see https://e.org/x.", '<p><a href="https://e.org/a_(b)">t</a> '
     '<a href="https://e.org/">https://e.org</a> see <a href="https://e.org/x">https://e.org/x</a>.</p>'),
    ("![pic](https://e.org/p.png)", '<p><a href="https://e.org/p.png">pic</a></p>'),
    ("&lt;b&gt; &amp;lt; &copy; a<br>b", "<p>&lt;b&gt; &amp;lt; &amp;copy; a<br>b</p>"),
    ("windows\r\n\r\n- line\r\n- ends\r\n", "<p>windows</p><ul><li><p>line</p></li><li><p>ends</p></li></ul>"),
]  # fmt: skip


def test_markdown_becomes_what_it_says(shared_visitor: Visitor) -> None:
    assert {text: html(shared_visitor, text) for text, _ in CASES} == dict(CASES)


def test_tasks_are_told_apart(shared_visitor: Visitor) -> None:
    shown = "[...root.querySelectorAll('input')].map((box) => [box.checked, box.disabled, box.ariaLabel])"
    assert render(shared_visitor, "- [x] done\n- [ ] not", show=shown) == [[True, True, "done"], [False, True, "to do"]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
def test_however_it_arrives_it_becomes_the_same(shared_visitor: Visitor, size: int) -> None:
    for text in [*(case[0] for case in CASES), "\n\n".join(case[0] for case in CASES)]:
        assert render(shared_visitor, text, size) == render(shared_visitor, text), text


@pytest.mark.parametrize("text", ["x " * 9000 + "\n\n**end**", "a *b* " * 2000 + "\n" + "c `d`\n" * 2000])
def test_a_long_text_too(shared_visitor: Visitor, text: str) -> None:
    for size in (333, 4096):
        assert render(shared_visitor, text, size) == render(shared_visitor, text)


def test_blocks_that_are_complete_are_left_alone(shared_visitor: Visitor) -> None:
    """Else a long answer would be drawn again with every token, and a selection in it lost."""
    done = "# T\n\nfirst *p*\n\n- a\n- b\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\ncode\n"
    script = """(async (done) => {
      const [{ Markdown }, { Ink }] = await Promise.all([import("/page/markdown.js"), import("/page/inline.js")]);
      const root = document.createElement("div");
      const markdown = new Markdown(root, new Ink([]));
      markdown.append(done);
      markdown.draw();
      const before = [...root.querySelectorAll("*")];
      for (const piece of ["more", " code", "\\n", "x".repeat(50), "\\n```\\n\\nThe ", "end"]) {
        markdown.append(piece);
        markdown.draw();
      }
      return [before.length, before.every((node) => root.contains(node)), root.lastChild.textContent];
    })"""
    count, kept, last = shared_visitor.tab.js(f"{script}({json.dumps(done)})")
    assert count > 20
    assert (kept, last) == (True, "The end")


HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script></script><script>document.title='owned'</script>",
    "[click](javascript:document.title='owned')",
    "[click](JaVaScRiPt:alert(1)) [click](java\nscript:alert(1)) [click](\x01javascript:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>) [c](vbscript:x)",
    "[c](file:///etc/passwd) [c](blob:x) [c](//e.org)",
    "[bank](https://bank.example@evil.example/) https://a:b@evil.example",
    '<javascript:alert(1)> <https://e.org/"onmouseover=alert(1)>',
    '![x](javascript:alert(1)) ![x]("onerror=alert(1))',
    '[a](https://e.org/"onclick="alert(1)) [b](https://e.org \'x" onclick="alert(1)\')',
    '```"><img src=x onerror=alert(1)>\n</code></pre><script>alert(1)</script>\n```',
    "| <img src=x onerror=alert(1)> | [x](javascript:alert(1)) |\n|--|--|\n| <svg onload=alert(1)> | `</td><script>` |",
    "<svg><style>*{display:none}</style></svg><iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#39;&quot;>",
    "- [x] <input autofocus onfocus=alert(1)>\n> <details open ontoggle=alert(1)>",
    '<a href="javascript:alert(1)">x</a> <form action=https://e.org><button>x',
]


@pytest.mark.parametrize("size", [1, 1 << 30])
def test_no_answer_makes_anything_but_text(shared_visitor: Visitor, size: int) -> None:
    shown = """[[...new Set([...root.querySelectorAll("*")].map((node) => node.localName))],
      [...new Set([...root.querySelectorAll("*")].flatMap((node) => node.getAttributeNames()))],
      [...root.querySelectorAll("a")].map((node) => [node.href, node.rel, node.target])]"""
    for text in HOSTILE:
        names, attributes, links = render(shared_visitor, text, size, show=shown)
        assert set(names) <= ALLOWED, text
        assert set(attributes) <= ATTRIBUTES, text
        for address, rel, target in links:
            assert re.match(r"https://e\.org\b", address), text
            assert ("noopener" in rel, target) == (True, "_blank")
    assert shared_visitor.tab.js("document.title") == "edgellm"


def test_no_text_is_lost_where_it_is_no_markdown(shared_visitor: Visitor) -> None:
    for text in [
        "<b>x</b> & <i>",
        "שלום עולם, hello",
        "👩‍👩‍👧 🇪🇺 e\u0301 𝒳",
        "\u202egpj.exe\u202c",
        "a\u0000b",
        "x" * 100_000,
    ]:
        assert render(shared_visitor, text, show="root.textContent") == text


def test_text_from_right_to_left_is_set_so(shared_visitor: Visitor) -> None:
    shown = "[...root.querySelectorAll('p')].map((node) => getComputedStyle(node).direction)"
    assert render(shared_visitor, "שלום עולם\n\nhello\n\nمرحبا", show=shown) == ["rtl", "ltr", "rtl"]


@pytest.mark.parametrize(
    "text",
    [
        *("> " * 5000, "- " * 5000, "*a " * 20_000, "[" * 50_000, "![" * 20_000, "<" * 50_000, "\\" * 50_000),
        *("".join("`" * n + " " for n in range(400)), "**_" * 3000, "|" * 20_000, "|a" * 5000 + "\n" + "|-" * 5000),
        *("https://e.org/" + ")" * 20_000, "- x\n" * 5000, "# " + " #" * 20_000, "\n" * 50_000, " " * 50_000 + "x"),
        *("[a](" + "(" * 20_000, "&" * 50_000, "~~a" * 20_000, "> - " * 3000),
    ],
    ids=lambda text: repr(text[:6]),
)
def test_no_text_stops_the_page(shared_visitor: Visitor, text: str) -> None:
    """Nesting is bounded, and nothing takes time with the square of the length: else this would not end."""
    depth = (
        "Math.max(...[...root.querySelectorAll('*')].slice(-2000).map((node) => { let d = 0; while (node !== root) {"
    )
    assert render(shared_visitor, text, 5000, show=depth + "d++; node = node.parentNode; } return d; }), 0)") < 100


DRAFTED = [
    ("a «draft» b", ["draft"]),
    ("# «Head *it»* end", ["Head ", "it"]),
    ("- a **«bold»** word\n- «x", ["bold", "x"]),
    ("`in «code` ou»t", ["code", " ou"]),
    ("```\none\n«two\nthr»ee\n```", ["two\n", "thr"]),
    ("| a | b |\n|---|---|\n| c«ell | oth»er |", ["ell", "oth"]),
    ("see https://«e.org/x e»nd", ["e.org/x", " e"]),
    ("[lab«el](https://e.org) an»d", ["el", " an"]),
    ("two\nli«nes\nand» more", ["nes", "and"]),
    ("> q«uo»te \\*«es»c\\*", ["uo", "es"]),
]


@pytest.mark.parametrize("size", [1, 1 << 30])
def test_what_was_drafted_is_marked_and_nothing_else(shared_visitor: Visitor, size: int) -> None:
    """« and » stand around what was."""
    shown = "[[...root.querySelectorAll('.drafted')].map((node) => node.textContent), root.textContent]"
    for marked, expected in DRAFTED:
        parts = re.split("[«»]", marked)
        offsets = [sum(map(len, parts[: i + 1])) for i in range(len(parts) - 1)]
        offsets += [len("".join(parts))] * (len(offsets) % 2)
        found, whole = render(shared_visitor, "".join(parts), size, offsets, shown)
        assert found == expected
        assert whole == render(shared_visitor, "".join(parts), show="root.textContent")


def test_a_paragraph_without_an_end_stays_one(shared_visitor: Visitor) -> None:
    """Long ago written words are not drawn again, and nobody sees where that begins."""
    shown = "[root.children.length, root.querySelectorAll('br').length, root.textContent]"
    assert render(shared_visitor, "word " * 6000, 50, show=shown) == [1, 0, "word " * 6000]
    assert render(shared_visitor, "- " + "y" * 20_000 + "\n- z", 999, show=shown) == [1, 0, "y" * 20_000 + "z"]
    assert render(shared_visitor, "line\n" * 3000, 700, show=shown) == [1, 2999, "line" * 3000]
