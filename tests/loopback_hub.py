"""A small Hub and package index on the loopback, with faults to order.

It speaks the routes that huggingface_hub and pip ask for a public repository and a package: model info, file tree,
`resolve` with the Hub's headers, a simple index and its wheels. Ranges are honoured unless told otherwise.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import threading
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(slots=True)
class Fault:
    """What goes wrong for paths that contain `where`; `times` how often (None: always)."""

    where: str
    status: int | None = None  # this answer instead of the file
    code: str | None = None  # the Hub's X-Error-Code with it
    cut_at: int | None = None  # bytes of the body that are sent before the connection is closed
    flip: bool = False  # the first byte is another one
    ignore_ranges: bool = False
    stall_s: float = 0.0  # before the answer
    bytes_per_s: float | None = None
    gate: threading.Event | None = None  # the second half of the body waits for it
    method: str | None = None
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass(slots=True)
class Repo:
    files: dict[str, bytes]
    licence: str | None = None
    gated: bool = False
    private: bool = False
    token: str | None = None  # opens a gated or private repository
    etag: str | None = None  # instead of the true one

    @property
    def commit(self) -> str:
        names = "".join(f"{name}:{hashlib.sha256(data).hexdigest()}" for name, data in sorted(self.files.items()))
        return hashlib.sha1(names.encode()).hexdigest()


@dataclass(slots=True)
class LoopbackHub:
    """Start with `with LoopbackHub() as hub:`; `hub.url` is the endpoint, `hub.index` what pip is pointed at."""

    repos: dict[str, Repo] = field(default_factory=dict)
    wheels: dict[str, bytes] = field(default_factory=dict)  # file name -> content
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    password: str | None = None  # user:password that the index and its wheels ask for
    pip_only: bool = False  # wheels are served to pip and to nobody else
    _server: ThreadingHTTPServer | None = None

    def __enter__(self) -> LoopbackHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def index(self) -> str:
        return f"http://{self.password + '@' if self.password else ''}127.0.0.1:{self.port}/simple"

    def add_repo(self, name: str, files: Mapping[str, bytes], **settings: Any) -> Repo:
        self.repos[name] = Repo(dict(files), **settings)
        return self.repos[name]

    def add_folder(self, name: str, folder: Path, **settings: Any) -> Repo:
        """Serve a real folder as a repository."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.add_repo(name, files, **settings)

    def add_package(self, name: str, version: str, members: Mapping[str, bytes]) -> str:
        """Serve a wheel with these members; its file name is returned."""
        import io

        stem = name.replace("-", "_")
        info = f"{stem}-{version}.dist-info"
        metadata = {
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files = {**members, **metadata}
        record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in {**files, f"{info}/RECORD": record.encode()}.items():
                archive.writestr(path, data)
        filename = f"{stem}-{version}-py3-none-any.whl"
        self.wheels[filename] = buffer.getvalue()
        return filename

    def fault(self, where: str, **what: Any) -> Fault:
        self.faults.append(Fault(where, **what))
        return self.faults[-1]

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests so far whose path contains `part`."""
        return [request for request in self.requests if part in request.path and request.method == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[LoopbackHub]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        split = urlsplit(self.path)
        path = unquote(split.path)
        headers = self.headers
        hub = self.hub
        hub.requests.append(Request(self.command, path, headers.get("Range"), headers.get("Authorization")))
        fault = Fault("") if path.endswith(".whl.metadata") else self._fault(path)
        time.sleep(fault.stall_s)
        if fault.status:
            return self._refuse(fault.status, fault.code or "")
        if path.startswith("/simple/") or path.startswith("/wheels/"):
            return self._package(path, fault)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._info(match[1], blobs="blobs" in parse_qs(split.query))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            return self._tree(match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], match[2], match[3], fault)
        self._refuse(404, "")

    def _fault(self, path: str) -> Fault:
        for fault in self.hub.faults:
            if fault.where in path and fault.method in (None, self.command) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return Fault("")

    def _repo(self, name: str) -> Repo | None:
        """The repository, if it is there and the caller may see it; otherwise the refusal has been sent."""
        repo = self.hub.repos.get(name)
        knows = repo is not None and repo.token and self.headers.get("Authorization") == f"Bearer {repo.token}"
        if repo is None or (repo.private and not knows):
            self._refuse(401, "RepoNotFound")
            return None
        return repo

    def _info(self, name: str, *, blobs: bool) -> None:
        if not (repo := self._repo(name)):
            return
        siblings = [{"rfilename": file, **(self._lfs(data) if blobs else {})} for file, data in repo.files.items()]
        card = {"license": repo.licence} if repo.licence else {}
        self._json({"id": name, "sha": repo.commit, "siblings": siblings, "cardData": card, "gated": repo.gated})

    def _tree(self, name: str, revision: str) -> None:
        if not (repo := self._repo(name)):
            return
        if revision not in ("main", repo.commit):
            return self._refuse(404, "RevisionNotFound")
        entries = []
        for file, data in repo.files.items():
            lfs = self._lfs(data)
            oid = hashlib.sha1(data).hexdigest()
            pointer = {"oid": lfs["lfs"]["sha256"], "size": len(data), "pointerSize": 134}
            entries.append({"type": "file", "path": file, "size": len(data), "oid": oid, "lfs": pointer})
        self._json(entries)

    def _lfs(self, data: bytes) -> dict[str, Any]:
        lfs = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return {"size": len(data), "lfs": lfs}

    def _resolve(self, name: str, revision: str, file: str, fault: Fault) -> None:
        if not (repo := self._repo(name)):
            return
        if repo.gated and self.headers.get("Authorization") != f"Bearer {repo.token}":
            return self._refuse(401 if not self.headers.get("Authorization") else 403, "GatedRepo")
        if revision not in ("main", repo.commit):
            return self._refuse(404, "RevisionNotFound")
        if file not in repo.files:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
        data = repo.files[file]
        etag = f'"{repo.etag or hashlib.sha256(data).hexdigest()}"'
        headers = {"X-Repo-Commit": repo.commit, "X-Linked-Etag": etag, "X-Linked-Size": str(len(data)), "ETag": etag}
        self._body(data, headers, fault)

    def _package(self, path: str, fault: Fault) -> None:
        if self.hub.password and not (self.headers.get("Authorization") or "").startswith("Basic "):
            return self._refuse(401, "", {"WWW-Authenticate": 'Basic realm="index"'})
        kind, name = path.strip("/").split("/", 1)
        if self.hub.pip_only and kind == "wheels" and not self.headers.get("User-Agent", "").startswith("pip/"):
            return self._refuse(403, "")
        if name.endswith(".whl.metadata"):
            return self._body(self._metadata(name.removesuffix(".metadata")), {}, fault)
        if kind == "wheels":
            wheel = self.hub.wheels.get(name)
            return self._body(wheel, {}, fault) if wheel is not None else self._refuse(404, "")
        stem = name.replace("-", "_") + "-"
        links = []
        for file, data in self.hub.wheels.items():
            if file.startswith(stem):
                sha256, metadata = (hashlib.sha256(part).hexdigest() for part in (data, self._metadata(file)))
                hints = f'data-core-metadata="sha256={metadata}" data-dist-info-metadata="sha256={metadata}"'
                links.append(f'<a href="/wheels/{file}#sha256={sha256}" {hints}>{html.escape(file)}</a>')
        if not links:
            return self._refuse(404, "")
        self._body(("<!DOCTYPE html><html><body>" + "".join(links)).encode(), {"Content-Type": "text/html"}, Fault(""))

    def _metadata(self, wheel: str) -> bytes:
        """What pip reads instead of the whole wheel (PEP 658)."""
        name, version = wheel.split("-")[:2]
        return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()

    def _body(self, data: bytes, headers: Mapping[str, str], fault: Fault) -> None:
        start, wanted = 0, self.headers.get("Range")
        ranged = bool(wanted) and not fault.ignore_ranges
        if ranged:
            start = int((wanted or "").removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                return self._refuse(416, "", {"Content-Range": f"bytes */{len(data)}"})
        if fault.flip:
            data = bytes([data[0] ^ 0xFF]) + data[1:]
        body = data[start:]
        self.send_response(206 if ranged else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.cut_at is not None:
            self.wfile.write(body[: fault.cut_at])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        if fault.gate is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            fault.gate.wait(60)
            body = body[len(body) // 2 :]
        step = len(body) if fault.bytes_per_s is None else max(1, int(fault.bytes_per_s / 50))
        for offset in range(0, len(body), max(1, step)):
            self.wfile.write(body[offset : offset + step])
            self.wfile.flush()
            if fault.bytes_per_s is not None:
                time.sleep(0.02)

    def _json(self, value: Any) -> None:
        self._body(json.dumps(value).encode(), {"Content-Type": "application/json"}, Fault(""))

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
