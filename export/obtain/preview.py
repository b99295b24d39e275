"""The shape of a model that is on the Hub alone, from the beginning of its file: a header is read, never a weight."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from edgellm.export.obtain import hub, naming
from edgellm.export.obtain.catalogue import HfSource
from edgellm.export.obtain.download import CONNECT_S, READ_S, SourceError
from edgellm.memory.counts import from_config
from edgellm.memory.gguf import GgufHeader, HeaderCutShort, parse_header
from edgellm.memory.limits import CONFIG_JSON_MAX_BYTES
from edgellm.memory.shape import ModelShape, UnknownShape, from_header
from edgellm.memory.split import joined

FIRST_BYTES = 2**20  # of a small vocabulary's header; four times as many at each further try
MOST_BYTES = 2**26  # no header is so long: the largest vocabularies take 16 MB


def shape_on_hub(repo: str, quant: str | None, *, token: str | None = None) -> tuple[ModelShape, bool]:
    """The shape of a repository's GGUF file, or, where it holds a checkpoint, of that once exported at `quant`; and
    whether it is the former.

    Raises:
        BadReference: none or several files fit.
        SourceError: the Hub is out of reach or refuses.
        GgufError: the file is damaged.
        UnknownShape: its cache is not known.
    """
    try:
        _, file = hub.find_file(repo, quant, token=token)
    except naming.BadReference:
        config = _config(repo, token)
        if config is None:
            raise
        return from_config(config, (quant or "Q4_K_M").upper(), repo), False
    source = next(source for source in file.sources if isinstance(source, HfSource))
    return shape_of(source, len(file.parts), f"{repo}:{quant}" if quant else repo, token=token), True


def shape_of(source: HfSource, n_parts: int, name: str, *, token: str | None = None) -> ModelShape:
    """The shape of a GGUF file on the Hub, or of several that make a model. Raises as `shape_on_hub` does."""
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        parts = [_header(source.part(number), Path(folder), token) for number in range(1, n_parts + 1)]
        return from_header(joined(parts), name)


def _header(source: HfSource, folder: Path, token: str | None) -> GgufHeader:
    """Of a file on the Hub; its beginning is put into `folder`, where arrays are read when somebody asks for them."""
    n_bytes = FIRST_BYTES
    path = folder / Path(source.filename).name
    while True:
        head, file_bytes = _head(source, n_bytes, token)
        path.write_bytes(head)
        try:
            return parse_header(memoryview(head), path, file_bytes)
        except HeaderCutShort:
            if len(head) < n_bytes or n_bytes >= MOST_BYTES:
                raise
            n_bytes *= 4


def _config(repo: str, token: str | None) -> dict[str, Any] | None:
    """A checkpoint's config.json; None where there is none."""
    try:
        head, _ = _head(HfSource(repo, "config.json"), CONFIG_JSON_MAX_BYTES, token)
    except SourceError as error:
        if error.status == 404:
            return None
        raise
    try:
        config = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise UnknownShape(f"config.json of {repo} is no JSON") from error
    return config if isinstance(config, dict) else None


def _head(source: HfSource, n_bytes: int, token: str | None) -> tuple[bytes, int | None]:
    """The first bytes of a file, `n_bytes` at most, and the size of the whole."""
    import httpx2
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not re-exported

    url = huggingface_hub.hf_hub_url(source.repo, source.filename, revision=source.revision, endpoint=hub.endpoint())
    headers = {
        **build_hf_headers(token=token), "Accept-Encoding": "identity", "Range": f"bytes=0-{n_bytes - 1}",
    }  # fmt: skip
    timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
    with (
        hub.plain_errors(source.repo),
        httpx2.Client(follow_redirects=True, timeout=timeout) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        if response.status_code not in (200, 206):
            raise SourceError(f"{response.url.host} answers {response.status_code}", status=response.status_code)
        data = bytearray()
        for chunk in response.iter_raw():
            data += chunk
            if len(data) >= n_bytes:  # a server that ignores ranges would go on
                break
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        if response.status_code == 200:
            total = response.headers.get("Content-Length", "")
        return bytes(data[:n_bytes]), int(total) if total.isdigit() else None
