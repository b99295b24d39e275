"""The chat page at `/`: files of the package, read once, that name no other host and run no script but their own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).with_suffix("")
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",  # the icon; no picture that an answer names is ever loaded
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # a browser that knows it refuses to parse text as HTML
        "trusted-types 'none'",
    )
)
HEADERS = {
    "cache-control": "no-cache",  # keep it, and ask each time whether it still holds
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def routes() -> list[Route]:
    """`/` and `/page/{file}`, for GET and HEAD."""
    files = {path.name: PageFile(path) for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["file"])
        return found.answer(request) if found else Response("no such file\n", 404, HEADERS, "text/plain")

    async def index(request: Request) -> Response:
        return files["index.html"].answer(request)

    return [Route("/", index), Route("/page/{file}", file)]


class PageFile:
    """One file and its entity tag."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._content = path.read_bytes()
        tag = f'"{hashlib.sha256(self._content).hexdigest()[:32]}"'
        self._headers = {**HEADERS, "etag": tag, "content-type": MEDIA_TYPES[path.suffix]}

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the client has it."""
        held = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if held & {self._headers["etag"], "*"}:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers)
