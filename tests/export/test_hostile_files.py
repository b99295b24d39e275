"""Damaged and malicious inputs: a clear error each, and never a crash, a hang, or memory that the file does not
justify.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import random_weights, tiny_model, write_torch

from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.convert.trim import TrimError, trim_vocabulary
from edgellm.export.read.checkpoint import CheckpointError, read_checkpoint
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.read.tokenizer_facts import TokenizerError
from edgellm.memory.gguf import GgufError, read_header

CLEAR = (CheckpointError, UnsupportedModel, TokenizerError, GgufError, TrimError)
N_MUTATIONS = 500
HEADROOM_BYTES = 256 * 2**20


@pytest.fixture(autouse=True)
def little_memory() -> object:
    """What a lying length would make us allocate is refused by the system at once."""
    import psutil

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + HEADROOM_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def mutated(data: bytes, rng: random.Random, n_front: int) -> bytes:
    """Cut short, or with bits flipped or numbers exchanged in its first `n_front` bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(n_front)
        if kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            changed[at : at + 8] = rng.choice([b"\xff" * 8, struct.pack("<Q", 2**40), bytes(8), struct.pack("<q", -1)])
        else:
            changed[at : at + 4] = bytes(rng.randrange(256) for _ in range(4))
    return bytes(changed)


def survive(path: Path, whole: bytes, n_front: int, use: Callable[[], object]) -> int:
    """How many of the mutations were refused; each that was not must have been harmless."""
    rng, n_refused = random.Random(99), 0
    for _ in range(N_MUTATIONS):
        path.write_bytes(mutated(whole, rng, n_front))
        try:
            use()
        except CLEAR:
            n_refused += 1
    path.write_bytes(whole)
    use()
    return n_refused


def test_500_mutations_of_safetensors_are_refused_or_harmless(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    n_front = 8 + struct.unpack("<Q", whole[:8])[0]
    assert survive(path, whole, n_front, lambda: to_gguf(folder, tmp_path / "out.gguf")) > N_MUTATIONS // 2
    assert not list(tmp_path.glob(".*"))


def test_500_mutations_of_a_torch_file_are_refused_or_harmless(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    write_torch(folder / "pytorch_model.bin", random_weights(json.loads((folder / "config.json").read_text())))
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    assert survive(path, whole, 4096, lambda: to_gguf(folder, tmp_path / "out.gguf")) > N_MUTATIONS // 4


def test_500_mutations_of_a_gguf_header_are_refused_or_harmless(tmp_path: Path) -> None:
    to_gguf(tiny_model(tmp_path / "tiny", "llama"), tmp_path / "model.gguf")
    path = tmp_path / "model.gguf"
    whole, header = path.read_bytes(), read_header(path)

    def use() -> None:
        read_header(path)
        trim_vocabulary(path, tmp_path / "trimmed.gguf", range(280))

    assert survive(path, whole, header.data_offset, use) > N_MUTATIONS // 4


def test_mutations_of_tokenizer_and_configuration_are_refused_or_harmless(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        whole = (folder / name).read_bytes()
        survive(folder / name, whole, len(whole), lambda: to_gguf(folder, tmp_path / "out.gguf"))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.marker}",)


def torch_file(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "run"
    for protocol in range(6):
        torch_file(tmp_path / "pytorch_model.bin", pickle.dumps({"weight": Evil(marker)}, protocol))
        with pytest.raises(CheckpointError, match="no table of tensors needs"):
            read_checkpoint(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x02ctorch\n_utils._rebuild_tensor_v2\n.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 entries
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # 2^63 bytes
        b"\x80\x02X\xff\xff\xff\x7f.",  # a text of 2^31 bytes
        b"(" * 1000 + b"t" * 1000 + b".",
        b"",
    ],
)
def test_a_pickle_that_wants_memory_or_other_code_is_refused(tmp_path: Path, data: bytes) -> None:
    torch_file(tmp_path / "pytorch_model.bin", data)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)


def test_a_compressed_bomb_and_an_old_torch_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(32 * 2**20))
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(tmp_path)
    buffer = io.BytesIO()
    pickle.dump({"weight": 1}, buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"before 1\.6"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "model.pkl"])
def test_an_index_cannot_name_a_shard_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="no file of this folder"):
        read_checkpoint(tmp_path)
