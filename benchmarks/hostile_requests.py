"""Random requests that no well-meant client sends, and some that one does; for `hostile.py`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WORDS = (
    "river", "stone", "lantern", "def f(x):", "\n", "{", "}", "<|im_end|>", "</s>", "é", "\u0000", "你好", "🙂", "0",
)  # fmt: skip
PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/tokenize", "/v1/responses", "/v1/messages", "/v1/embeddings",
    "/v1/messages/count_tokens", "/v1/detokenize", "/chat/completions",
)  # fmt: skip
SOUND = PATHS[:6]
TOOL = {
    "name": "find_place",
    "description": "Find a place.",
    "parameters": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 40}, "kind": {"enum": ["river", "town"]}},
        "required": ["name", "kind"],
        "additionalProperties": False,
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 20}},
          "required": ["a"], "additionalProperties": False}  # fmt: skip
FIELDS = (
    "model", "messages", "prompt", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "n", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "echo",
    "frequency_penalty", "suffix", "best_of", "tools", "tool_choice", "parallel_tool_calls", "response_format",
    "tokens",
    "reasoning_effort", "chat_template_kwargs", "think_budget", "n_draft", "modalities", "user", "content", "unknown",
    "input", "instructions", "text", "reasoning", "store", "max_output_tokens", "previous_response_id", "include",
    "system", "stop_sequences", "thinking", "output_config", "encoding_format", "dimensions",
)  # fmt: skip


@dataclass(slots=True)
class Attack:
    """What is sent, how, and how it ends."""

    kind: str
    parts: list[bytes]
    pause_s: float = 0.0  # between parts
    leave_s: float | None = None  # after which the client hangs up, whatever came
    is_rude: bool = False  # hangs up by a reset
    is_half: bool = False  # says that nothing more comes, and reads
    is_sound: bool = False  # must be answered with 200, or be told to come back


class Maker:
    """One random request."""

    def __init__(self, seed: int, number: int, n_ctx: int) -> None:
        self.rng, self.n_ctx = random.Random(f"{seed}/{number}"), n_ctx

    def attack(self) -> Attack:
        kinds: list[tuple[int, Callable[[], Attack]]] = [
            (4, self.sound), (30, self.shaped), (14, self.spoiled), (5, self.deep), (3, self.large), (10,
            self.misrouted),
            (10, self.misheaded), (6, self.misframed), (6, self.garbage), (6, self.torn), (3, self.slow), (3,
            self.pipelined),
        ]  # fmt: skip
        made = self.rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0]()
        # A server may take the end of what is sent for the end of the client.
        made.is_half = made.leave_s is None and not made.is_sound and self.rng.random() < 0.05
        return made

    def cancelled(self) -> Attack:
        """A sound request of some length whose client leaves: while it waits, is read, or is answered."""
        rng = self.rng
        text = " ".join(rng.choices(WORDS[:3], k=rng.choice((5, 50, self.n_ctx // 4, self.n_ctx // 2))))
        body: dict[str, Any] = {"stream": rng.random() < 0.6, "max_tokens": 200, "temperature": rng.choice((0, 1))}
        if rng.random() < 0.7:
            body["messages"], path = [{"role": "user", "content": f"{rng.random()} {text}"}], PATHS[0]
        else:
            body["prompt"], path = f"{rng.random()} {text}", PATHS[1]
        if rng.random() < 0.2:
            body["n"] = 3
        if path == PATHS[0]:
            body |= self.held()
        elif rng.random() < 0.2:
            body["logprobs"] = 2
        leave_s = rng.choice((0.0, 0.02, rng.random() * 0.5, rng.random() * 3))
        return Attack("cancelled", [post(path, dump(body))], leave_s=leave_s, is_rude=rng.random() < 0.5)

    def held(self) -> dict[str, Any]:
        """What now and then holds an answer to something."""
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        forms: list[dict[str, Any]] = [
            {"response_format": {"type": "json_object"}},
            {"response_format": schema},
            {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"},
            {"tools": [{"type": "function", "function": TOOL}]},
        ]
        return self.rng.choice([*forms, {}, {}, {}, {}])

    def sound(self) -> Attack:
        path, body = self.sound_body()
        return Attack("sound", [post(path, dump(body))], is_sound=True)

    def sound_body(self) -> tuple[str, dict[str, Any]]:
        rng = self.rng
        path = rng.choice(SOUND)
        text = " ".join(rng.choices(WORDS, k=rng.randrange(1, 20)))
        if path == "/v1/tokenize":
            return path, {"content": text}
        if path == "/v1/embeddings":
            return path, {"model": "", "input": rng.choice((text, [text, "a"], [1, 2, 3], [[1], [2, 3]]))}
        body: dict[str, Any] = {"temperature": rng.choice((0, 0.7, 1.0))}
        body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = rng.randrange(1, 5)
        if path in ("/v1/responses", "/v1/messages"):
            body["stream"] = rng.random() < 0.5
            body["input" if path == "/v1/responses" else "messages"] = [{"role": "user", "content": text}]
            return path, body
        if path == "/v1/completions":
            body["prompt"] = rng.choice((text, [text, "a"], [1, 2, 3]))
        else:
            body["messages"] = [
                {"role": rng.choice(("user", "system")), "content": text},
                {"role": "user", "content": "?"},
            ]
        for name, value in {"stream": True, "seed": rng.randrange(2**40), "stop": [";"], "n": 2, "top_p": 0.5}.items():
            if rng.random() < 0.3:
                body[name] = value
        return path, body

    def shaped(self) -> Attack:
        """A sound body of which some fields are anything."""
        path, body = self.sound_body()
        for _ in range(self.rng.randrange(1, 4)):
            body[self.rng.choice(FIELDS)] = self.value(0)
        if self.rng.random() < 0.3 and isinstance(body.get("messages"), list) and body["messages"]:
            message: dict[str, Any] = {"role": self.rng.choice(("user", "tool", "assistant", "developer", "x"))}
            for name in (
                "content",
                "tool_calls",
                "tool_call_id",
                "name",
                "reasoning_content",
                "annotations",
                "refusal",
            ):
                if self.rng.random() < 0.3:
                    message[name] = self.value(1)
            body["messages"].insert(0, message)
        whole: Any = body if self.rng.random() < 0.95 else self.value(0)
        return Attack("shaped", [post(self.rng.choice((path, path, *PATHS)), dump(whole))])

    def value(self, depth: int) -> Any:
        rng = self.rng
        kind = rng.randrange(12 if depth < 4 else 8)
        if kind == 0:
            return rng.choice((None, True, False))
        if kind in (1, 2):
            return rng.choice((0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**30, rng.randrange(-10, 200_000)))
        if kind in (3, 4):
            return rng.choice((0.0, -0.0, 0.5, 1e308, -1e-320, 2.0, rng.random() * 10))
        if kind in (5, 6, 7):
            words = (
                "user",
                "auto",
                "none",
                "function",
                "json_schema",
                "json_object",
                "object",
                "",
                "x" * 5_000,
                "text",
            )
            return rng.choice((*WORDS, *words, "".join(chr(rng.randrange(1, 0xD800)) for _ in range(9))))
        if kind in (8, 9):
            return [self.value(depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 40)))]
        names = ("type", "role", "content", "text", "function", "name", "parameters", "schema", "json_schema", "strict",
                 "properties", "items", "pattern", "enum", "$ref", "anyOf", "minimum", "required", "arguments", "id",
                 "1")  # fmt: skip
        return {rng.choice(names): self.value(depth + 1) for _ in range(rng.randrange(6))}

    def spoiled(self) -> Attack:
        """A sound body whose bytes are not."""
        rng = self.rng
        path, body = self.sound_body()
        data = bytearray(dump(body))
        at = rng.randrange(len(data))
        how = rng.randrange(9)
        if how == 0:
            del data[at:]
        elif how == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            data[at:at] = rng.choice((b"NaN", b"Infinity", b"-", b"1e999", b"\\ud800", b"\x00", b"//", b"9" * 5_000))
        elif how == 3:
            data[at:at] = rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"))
        elif how == 4:
            data = bytearray(data.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig"))))
        elif how == 5:
            data[1:1] = rng.choice((b'"max_tokens": 1, ', b'"model": "a", "model": "b", ', b'"temperature": NaN, '))
        elif how == 6:
            data += rng.choice((b"{}", b"\n\n", b" x", bytes(data)))
        elif how == 7:
            data = bytearray(
                rng.choice((b"", b"[]", b"null", b"NaN", b'"', b"a=1&b=2", b"--x\r\nContent-Disposition: x"))
            )
        else:
            data = bytearray(rng.randbytes(rng.randrange(1, 3_000)))
        return Attack("spoiled", [post(path, bytes(data))])

    def deep(self) -> Attack:
        n = self.rng.choice((50, 900, 20_000, 200_000))
        opened, closed = self.rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"type":"array","items":', b"}")))
        nested = opened * n + b"1" + closed * n
        name = self.rng.choice(FIELDS).encode()
        body = b'{"messages":[{"role":"user","content":"a"}],"max_tokens":1,"' + name + b'":' + nested + b"}"
        schema = b'{"type":"json_schema","json_schema":{"name":"a","schema":' + nested + b"}}"
        if self.rng.random() < 0.3:
            body = b'{"messages":[{"role":"user","content":"a"}],"max_tokens":1,"response_format":' + schema + b"}"
        return Attack("deep", [post(PATHS[0], body)])

    def large(self) -> Attack:
        rng = self.rng
        user = {"role": "user", "content": "a"}
        bodies: list[Callable[[], Any]] = [
            lambda: {"messages": [user] * rng.choice((5_000, 10_001))},
            lambda: {"messages": [{"role": "user", "content": "word " * 100_000}]},
            lambda: {"messages": [user], "stop": ["x" * 999] * rng.choice((64, 65)), "max_tokens": 1},
            lambda: {"messages": [user], "logit_bias": {str(i): 1 for i in range(1_001)}, "max_tokens": 1},
            lambda: {"messages": [user], "max_tokens": 1, "user": "x" * 2_000_000},
            lambda: {
                "messages": [user],
                "max_tokens": 1,
                "tools": [{"type": "function", "function": {"name": "a"}}] * 500,
            },
        ]
        if rng.random() < 0.2:
            return Attack("large", [post(PATHS[0], b" " * (16 * 2**20 + 1))])
        if rng.random() < 0.2:
            return Attack(
                "large", [head("POST", PATHS[0], {"Content-Length": str(rng.choice((2**31, 2**63, 10**30)))})]
            )
        return Attack("large", [post(PATHS[0], dump(rng.choice(bodies)()))])

    def misrouted(self) -> Attack:
        rng = self.rng
        method = rng.choice(
            ("GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "POST")
        )
        path = rng.choice(
            (*PATHS, "/", "/v1/models", "/v1/models/a%2Fb%00", "/health", "/metrics", "/page/../../etc/passwd", "//",
            "/%ff%fe",
             "/page/%2e%2e/secret", "/v1/models/" + "x" * 30_000, "*", "http://127.0.0.1/v1/models",
             "/v1/models?a=" + "b" * 999,
             "/v1/models/..%5c..", "/favicon.ico", "/v1/chat/completions/", "/docs", "/openapi.json")
        )  # fmt: skip
        return Attack("misrouted", [head(method, path, {}) if rng.random() < 0.7 else post(path, b"{}", method)])

    def misheaded(self) -> Attack:
        rng = self.rng
        name, value = rng.choice(
            (("X-A", "b" * rng.choice((8_000, 60_000, 70_000, 300_000))), ("Host", "evil.example"), ("Host", ""),
            ("Origin", "null"),
             ("Origin", "http://evil.example"), ("Content-Type", "\xff\xfe"), ("Content-Encoding", "gzip"),
             ("Expect", "100-continue"),
             ("Authorization", "Bearer " + "k" * 9_000), ("Connection", "Upgrade"), ("Upgrade", "websocket"),
             ("Cookie", "a=b; " * 900),
             ("Range", "bytes=0-"), ("X Y", "z"), ("X-A", "a\r\n folded"), ("", "nameless"), ("X-A", "a\x00b"),
             ("Accept", "image/png"),
             ("Transfer-Encoding", "gzip"), ("Content-Length", "-1"), ("Content-Length", "1, 2"), ("Content-Length",
             "٣"))
        )  # fmt: skip
        headers = [(name, value)] * rng.choice((1, 1, 2, 300))
        path, body = self.sound_body()
        return Attack("misheaded", [post(path, dump(body), more=headers)])

    def misframed(self) -> Attack:
        """Lengths and chunks that do not fit."""
        rng = self.rng
        path, body = self.sound_body()
        data = dump(body)
        chunk = b"%x\r\n%s\r\n" % (len(data), data)
        framed = rng.choice(
            (chunk + b"0\r\n\r\n", chunk, b"zz\r\n", b"ffffffffffffffffff\r\nx", b"-1\r\n\r\n",
            chunk + b"0\r\nX: y\r\n\r\n",
             b"5;" + b"e" * 70_000 + b"\r\n", b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n")
        )  # fmt: skip
        headers = {"Transfer-Encoding": "chunked"}
        if rng.random() < 0.3:
            headers["Content-Length"] = str(rng.choice((0, 5, len(framed))))
        if rng.random() < 0.2:
            return Attack("misframed", [head("POST", path, {"Content-Length": str(len(data) + 9)}) + data], leave_s=1.0)
        return Attack("misframed", [head("POST", path, headers) + framed], leave_s=2.0)

    def garbage(self) -> Attack:
        rng = self.rng
        data = rng.choice(
            (rng.randbytes(rng.randrange(1, 5_000)),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
             b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 5_000, b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n",
             b"\x00" * 70_000,
             b"POST / HTTP/1.1\r\n" + b"a" * 100_000, b"SSH-2.0-OpenSSH\r\n", b"GET /health HTTP/1.0\r\n\r\n")
        )  # fmt: skip
        return Attack("garbage", [data], leave_s=1.0)

    def torn(self) -> Attack:
        path, body = self.sound_body()
        data = post(path, dump(body))
        cut = data[: self.rng.randrange(len(data))]
        return Attack("torn", [cut], leave_s=self.rng.random() * 0.3, is_rude=self.rng.random() < 0.5)

    def slow(self) -> Attack:
        path, body = self.sound_body()
        data = post(path, dump(body))
        n = self.rng.randrange(2, 12)
        parts = [data[len(data) * i // n : len(data) * (i + 1) // n] for i in range(n)]
        pause_s = self.rng.random() * 0.3
        if self.rng.random() < 0.5:
            return Attack("slow", parts[: n // 2 + 1], pause_s, leave_s=self.rng.random())
        return Attack("slow", parts, pause_s, is_sound=True)

    def pipelined(self) -> Attack:
        first = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * self.rng.randrange(1, 40)
        path, body = self.sound_body()
        tail = self.rng.choice((self.rng.randbytes(300), post(path, dump(body)), b"GET"))
        return Attack("pipelined", [first + tail], leave_s=3.0)


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def head(method: str, path: str, headers: dict[str, str] | list[tuple[str, str]]) -> bytes:
    pairs = list(headers.items() if isinstance(headers, dict) else headers)
    if not any(name == "Host" for name, _ in pairs):
        pairs.insert(0, ("Host", "localhost"))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs), "Connection: close", "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def post(path: str, data: bytes, method: str = "POST", more: list[tuple[str, str]] | None = None) -> bytes:
    return head(method, path, [("Content-Length", str(len(data))), *(more or [])]) + data
