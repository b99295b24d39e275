"""Who may ask: programs and pages of this machine, or whoever has the key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_servers import Running, Scripted, running

KEYS = ("secret", "other-key")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Scripted(), origins=("https://chat.example.org",)) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with running(Scripted(), api_keys=KEYS, is_loopback=False) as server:
        yield server


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]"])
def test_names_of_this_machine_are_served(server: Running, host: str) -> None:
    assert server.ask("GET", "/health", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example.org", "localhost.evil.org", "localhost@evil.org", "127.0.0.1.evil.org:80", "", "[::1"]
)
def test_a_foreign_name_that_leads_here_is_refused(server: Running, host: str) -> None:
    reply = server.ask("GET", "/v1/models", headers={"Host": host})
    assert reply.status == 403
    assert "Host" in reply.error()["message"]


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173", "https://chat.example.org"]
)
def test_pages_of_this_machine_and_those_that_were_named_may_read(server: Running, origin: str) -> None:
    reply = server.ask("GET", "/v1/models", headers={"Origin": origin})
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == origin
    assert "Origin" in reply.headers["vary"]
    assert "access-control-allow-credentials" not in reply.headers
    refused = server.ask("POST", "/v1/chat/completions", {}, headers={"Origin": origin})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (400, origin)


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example.org", "null", "http://localhost.evil.org", "file://", "http://a@localhost.org", "x"],
)
def test_pages_of_elsewhere_may_not_even_ask(server: Running, origin: str) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("OPTIONS", "/v1/models")):
        reply = server.ask(method, path, headers={"Origin": origin})
        assert reply.status == 403
        assert "access-control-allow-origin" not in reply.headers


def test_a_page_of_this_server_may_ask_it_wherever_it_is_reached(locked: Running) -> None:
    headers = {"Host": "192.168.1.5:8080", "Origin": "http://192.168.1.5:8080", "Authorization": "Bearer secret"}
    assert locked.ask("GET", "/v1/models", headers=headers).status == 200


def test_a_browser_is_told_what_it_may_send(server: Running) -> None:
    headers = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    reply = server.ask("OPTIONS", "/v1/chat/completions", headers=headers)
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "x-stainless-os" in reply.headers["access-control-allow-headers"]
    assert server.ask("OPTIONS", "/v1/models").status == 204


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer secret"},
        {"Authorization": "bearer  other-key"},
        {"x-api-key": "secret"},
        {"api-key": "other-key"},
    ],
)
def test_whoever_has_a_key_is_served(locked: Running, headers: dict[str, str]) -> None:
    assert locked.ask("GET", "/v1/models", headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer secre"},
        {"Authorization": "Bearer secret2"},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
        {"Authorization": "Bearer s\xe9cret"},
        {"x-api-key": ""},
    ],
    ids=str,
)
def test_nobody_else_is(locked: Running, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/no")):
        reply = locked.ask(method, path, headers=headers)
        assert reply.status == 401
        assert reply.error()["code"] == "invalid_api_key"
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_whether_it_lives_is_told_to_all(locked: Running, path: str) -> None:
    assert locked.ask("GET", path).json() == {"status": "ok"}


def test_any_key_is_taken_where_none_is_wanted(server: Running) -> None:
    assert server.ask("GET", "/v1/models", headers={"Authorization": "Bearer whatever"}).status == 200
