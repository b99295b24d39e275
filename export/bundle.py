"""One model, one drafter and their manifest in a folder or a tar, as an app ships them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from edgellm.export import manifest
from edgellm.export.gguf_writer import appearing
from edgellm.export.manifest import Manifest, ManifestError


def pack(folder: Path, output: Path, *, quant: str | None = None, draft_quant: str | None = None) -> Manifest:
    """Check an exported folder and pack one type of each role of it; `output` appears whole or not at all.

    The same folder gives the same tar to the bit: members in the manifest's order, no times, no owners.

    Raises:
        ManifestError: the folder is not what its manifest says, lacks the type, or `output` is there already.
    """
    source = manifest.verify(folder)
    if output.exists():
        raise ManifestError(f"{output} exists: remove it, or choose another --output")
    files = [_picked(source, role, wanted) for role, wanted in (("target", quant), ("draft", draft_quant))]
    files += [[entry for entry in source.files() if entry["role"] not in {"target", "draft"}]]
    packed = manifest.check({**source.document, "files": [entry for part in files for entry in part]}, str(folder))
    text = json.dumps(packed.document, indent=2, ensure_ascii=False).encode() + b"\n"
    if output.suffix == ".tar":
        with appearing(output) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(_member(manifest.NAME, len(text)), io.BytesIO(text))
            for entry in packed.files():
                with (folder / entry["path"]).open("rb") as data:
                    tar.addfile(_member(entry["path"], entry["n_bytes"]), data)
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


def _picked(source: Manifest, role: str, quant: str | None) -> list[dict[str, Any]]:
    of_role = [entry for entry in source.files() if entry["role"] == role]
    chosen = [entry for entry in of_role if quant is None or entry.get("quant") == quant.upper()][:1]
    if quant is not None and not chosen:
        has = ", ".join(str(entry.get("quant")) for entry in of_role) or "none"
        raise ManifestError(f"the export has no {role} of type {quant}; it has {has}")
    return chosen


def _member(name: str, n_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = n_bytes, 0o644
    return member
