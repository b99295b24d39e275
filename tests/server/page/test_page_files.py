"""The page's files, as they are served."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import pytest
from scripted_api import ScriptedApi

from edgellm.server import page

FILES = sorted(path.name for path in page.FOLDER.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
SVG = "http://www.w3.org/2000/svg"  # a name, not an address


def fetch(
    api: ScriptedApi, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(urlsplit(api.url).netloc, timeout=10)
    connection.request(method, path, headers=dict(headers or {}))
    response = connection.getresponse()
    return response, response.read()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_with_its_type_and_a_policy(shared_api: ScriptedApi, name: str) -> None:
    response, content = fetch(shared_api, f"/page/{name}")
    assert (response.status, content) == (200, (page.FOLDER / name).read_bytes())
    assert response.headers["content-type"] == page.MEDIA_TYPES[f".{name.rpartition('.')[2]}"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == page.POLICY


def test_the_page_is_at_the_root(shared_api: ScriptedApi) -> None:
    assert fetch(shared_api, "/")[1] == (page.FOLDER / "index.html").read_bytes()


def test_what_the_browser_holds_is_not_sent_again(shared_api: ScriptedApi) -> None:
    tag = fetch(shared_api, "/")[0].headers["etag"]
    for held in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        response, content = fetch(shared_api, "/", headers={"if-none-match": held})
        assert (response.status, content, response.headers["etag"]) == (304, b"", tag)
    assert fetch(shared_api, "/", headers={"if-none-match": '"other"'})[0].status == 200
    assert fetch(shared_api, "/page/main.js")[0].headers["etag"] != tag


def test_head_tells_the_length_and_sends_nothing(shared_api: ScriptedApi) -> None:
    response, content = fetch(shared_api, "/", "HEAD")
    assert int(response.headers["content-length"]) == (page.FOLDER / "index.html").stat().st_size
    assert content == b""


@pytest.mark.parametrize(
    "path", ["nothing.js", "..%2Fpage.py", "..%2f..%2fpyproject.toml", "%2Fetc%2Fpasswd", ".", "%00"]
)
def test_nothing_else_is_served(shared_api: ScriptedApi, path: str) -> None:
    assert fetch(shared_api, f"/page/{path}")[0].status == 404


@pytest.mark.parametrize("directive", ["default-src 'none'", "script-src 'self'", "connect-src 'self'"])
def test_the_policy_trusts_this_server_alone(directive: str) -> None:
    directives = page.POLICY.split("; ")
    assert directive in directives
    assert "frame-ancestors 'none'" in directives
    sources = {source for each in directives for source in each.split()[1:]}
    assert sources <= {"'self'", "'none'", "'script'"}


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host(name: str) -> None:
    text = (page.FOLDER / name).read_text(encoding="utf-8").replace(SVG, "")
    assert re.findall(r"""["'`(=]\s*(?:https?:)?//\w""", text) == []
    assert re.findall(r"@import|url\(", text) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_turns_text_into_markup_or_code(name: str) -> None:
    text = (page.FOLDER / name).read_text(encoding="utf-8")
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc"
    assert re.findall(markup, text) == []
    assert re.findall(r"\beval\b|Function\(", text) == []


def test_the_html_holds_no_script_and_no_style() -> None:
    text = (page.FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", text) == []
