"""One model, one drafter and their manifest in a folder or a tar, as an app ships them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from edgellm.export import manifest, onnx_bundle
from edgellm.export.gguf_writer import appearing
from edgellm.export.manifest import Manifest, ManifestError


def pack(
    folder: Path, output: Path, *, quant: str | None = None, draft_quant: str | None = None, ort: bool = False
) -> Manifest:
    """Check an exported folder and pack one type of each role of it; `output` appears whole or not at all.

    The same folder gives the same tar to the bit: members in the manifest's order, no times, no owners. ONNX models
    come with their operators and with hosts to start from.

    Args:
        ort: ONNX models in onnxruntime's own format.

    Raises:
        ManifestError: the folder is not what its manifest says, lacks the type, or `output` is there already.
    """
    source = manifest.verify(folder)
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
    if output.suffix == ".tar":
        _write_tar(folder, output, packed, text)
        return packed
    aside = output.with_name(f".{output.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for entry in packed.files():
        shutil.copyfile(folder / entry["path"], aside / entry["path"])
    manifest.write(aside, packed.document)
    manifest.verify(aside)
    aside.replace(output)
    return packed


def _pack_onnx(folder: Path, output: Path, packed: Manifest, *, ort: bool) -> Manifest:
    aside = output.with_name(f".{output.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for entry in packed.files():
            (aside / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / entry["path"], aside / entry["path"])
        document = {**packed.document, "files": onnx_bundle.furnish(aside, list(packed.files()), ort=ort)}
        manifest.write(aside, document)
        furnished = manifest.verify(aside)
        if output.suffix == ".tar":
            _write_tar(aside, output, furnished, (aside / manifest.NAME).read_bytes())
        else:
            aside.replace(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return furnished


def _write_tar(folder: Path, output: Path, packed: Manifest, text: bytes) -> None:
    with appearing(output) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(_member(manifest.NAME, len(text)), io.BytesIO(text))
        for entry in packed.files():
            with (folder / entry["path"]).open("rb") as data:
                tar.addfile(_member(entry["path"], entry["n_bytes"]), data)


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
