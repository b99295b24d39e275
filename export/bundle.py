"""One model, one drafter and their manifest in a folder or an archive, as an app ships them."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

from edgellm.export import manifest
from edgellm.export.manifest import Manifest, ManifestError
from edgellm.export.onnx import onnx_bundle
from edgellm.export.staging import exclusive
from edgellm.memory.files import CHUNK_BYTES, appearing, behind_links, beside, copy, discard, making


def pack(
    folder: Path,
    output: Path,
    *,
    quant: str | None = None,
    draft_quant: str | None = None,
    ort: bool = False,
    expected_format: str | None = None,
) -> Manifest:
    """Check an exported folder and pack one type of each role of it; `output` appears whole or not at all.

    What it becomes goes by its name: .tar, .tar.gz (.tgz) or .zip, and a folder otherwise. The same folder gives the
    same archive to the bit: members in the manifest's order, no times, no owners. ONNX models come with their
    operators and with hosts to start from.

    Args:
        ort: ONNX models in onnxruntime's own format.
        expected_format: that the folder was exported to ("gguf", "onnx"). None: either.

    Raises:
        ManifestError: the folder is not what its manifest says, lacks the type, or `output` is there already.
    """
    if expected_format is not None and expected_format != manifest.read(folder).options.get("format", "gguf"):
        raise ManifestError(
            f"{folder} was not exported to {expected_format}: `edgellm export MODEL --format {expected_format}`"
        )
    output = behind_links(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        return _pack(manifest.verify(folder), folder, output, quant, draft_quant, ort=ort)


def _pack(
    source: Manifest, folder: Path, output: Path, quant: str | None, draft_quant: str | None, *, ort: bool
) -> Manifest:
    if output.exists():
        raise ManifestError(f"{output} exists: remove it, or choose another --output")
    files = [_picked(source, role, wanted) for role, wanted in (("target", quant), ("draft", draft_quant))]
    files += [[entry for entry in source.files() if entry["role"] not in {"target", "draft"}]]
    packed = manifest.check({**source.document, "files": [entry for part in files for entry in part]}, str(folder))
    is_onnx = any(entry["path"].endswith(".onnx") for entry in packed.files())
    if ort and not is_onnx:
        raise ManifestError(f"{folder} holds no ONNX model, so --ort does not apply")
    if is_onnx:
        return _pack_onnx(folder, output, packed, ort=ort)
    text = json.dumps(packed.document, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    if _archive_kind(output):
        _write_archive(folder, output, packed, text)
        return packed
    with making(output) as aside:
        aside.mkdir()
        for entry in packed.files():
            _copy(folder, aside, entry)
        manifest.write(aside, packed.document)
        manifest.verify(aside)
    return packed


def _pack_onnx(folder: Path, output: Path, packed: Manifest, *, ort: bool) -> Manifest:
    if _archive_kind(output):
        furnished_folder = beside(output, f"{os.getpid()}.part.folder")
        discard(furnished_folder)
        try:
            made = _furnished(folder, furnished_folder, packed, ort=ort)
            _write_archive(furnished_folder, output, made, (furnished_folder / manifest.NAME).read_bytes())
        finally:
            discard(furnished_folder)
        return made
    with making(output) as aside:
        return _furnished(folder, aside, packed, ort=ort)


def _furnished(folder: Path, into: Path, packed: Manifest, *, ort: bool) -> Manifest:
    """An ONNX bundle's folder, complete."""
    for entry in packed.files():
        _copy(folder, into, entry)
    document = {**packed.document, "files": onnx_bundle.furnish(into, list(packed.files()), ort=ort)}
    manifest.write(into, document)
    return manifest.verify(into)


def _copy(folder: Path, into: Path, entry: Mapping[str, Any]) -> None:
    (into / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
    copy(folder / entry["path"], into / entry["path"])


def _archive_kind(output: Path) -> str | None:
    """How to pack, by what was typed; None: a folder."""
    name = output.name.lower()
    kinds = {".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".zip": "zip"}
    return next((kind for suffix, kind in kinds.items() if name.endswith(suffix) and name != suffix), None)


def _write_archive(folder: Path, output: Path, packed: Manifest, text: bytes) -> None:
    kind = _archive_kind(output)
    with appearing(output) as file:
        if kind == "zip":
            _write_zip(file, folder, packed, text)
        elif kind == "tar.gz":
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as compressed:
                _write_tar(cast(IO[bytes], compressed), folder, packed, text)
        else:
            _write_tar(file, folder, packed, text)


def _write_tar(file: IO[bytes], folder: Path, packed: Manifest, text: bytes) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(_member(manifest.NAME, len(text)), io.BytesIO(text))
        for entry in packed.files():
            with (folder / entry["path"]).open("rb") as data:
                tar.addfile(_member(entry["path"], entry["n_bytes"]), data)


def _write_zip(file: IO[bytes], folder: Path, packed: Manifest, text: bytes) -> None:
    """Stored and not compressed, so that an app can map a model inside it."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(_zip_member(manifest.NAME), text)
        for entry in packed.files():
            with (
                (folder / entry["path"]).open("rb") as data,
                archive.open(_zip_member(entry["path"]), "w", force_zip64=True) as member,
            ):
                shutil.copyfileobj(data, member, CHUNK_BYTES)


def _zip_member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)  # dated 1980, as far back as the format goes
    member.external_attr = 0o644 << 16
    return member


def _picked(source: Manifest, role: str, quant: str | None) -> list[dict[str, Any]]:
    of_role = [entry for entry in source.files() if entry["role"] == role]
    wanted = quant or next((entry.get("quant") for entry in of_role), None)
    chosen = [entry for entry in of_role if str(entry.get("quant")).casefold() == str(wanted).casefold()]
    if quant is not None and not chosen:
        has = ", ".join(dict.fromkeys(str(entry.get("quant")) for entry in of_role)) or "none"
        raise ManifestError(f"the export has no {role} of type {quant}; it has {has}")
    return chosen


def _member(name: str, n_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = n_bytes, 0o644
    return member
