"""Our GGUF files against those of llama.cpp's own converter, key by key and tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import FAMILIES, config_of, random_weights, small_tokenizer, write_weights
from sentencepiece_file import message, setting, varint

from edgellm.export.convert.conversion import choose
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.convert.script import Converter, convert
from edgellm.export.obtain.source import resolve
from edgellm.memory.gguf import GgufHeader, read_header

pytestmark = pytest.mark.differential

# Keys that are not the same, and why; "*" stands for the architecture. The table of docs/export.md.
OURS_ALONE = {
    "*.vocab_size": "of the architectures for which it says none; the rows of the embedding",
    "*.attention.key_length": "said for every model",
    "*.attention.value_length": "said for every model",
    "*.rope.dimension_count": "said for every model",
    "*.rope.freq_base": "said for every model",
    "tokenizer.ggml.unknown_token_id": "of tokenizer.model",
    "tokenizer.ggml.add_space_prefix": "said for every SentencePiece vocabulary; true is what llama.cpp assumes",
    "tokenizer.ggml.add_bos_token": "said for every vocabulary",
    "tokenizer.ggml.add_eos_token": "said for every vocabulary",
}
THEIRS_ALONE = {
    "general.size_label": "for people",
    "phi3.rope.scaling.original_context_length": "without effect where nothing is stretched",
    "general.sampling.*": "how to sample is the caller's",
    "tokenizer.ggml.add_sep_token": "false is what llama.cpp assumes",
    "tokenizer.ggml.add_space_prefix": "false is what llama.cpp assumes of byte-level vocabularies",
}
MODEL_TYPES = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral", "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3", "Gemma2ForCausalLM": "gemma2", "Gemma3ForCausalLM": "gemma3_text",
    "Phi3ForCausalLM": "phi3",
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("llama", {"rope_scaling": _YARN}),
    ("qwen2", {"rope_scaling": _YARN}),
    ("qwen3", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    ("mistral", {"head_dim": 16, "rope_theta": 1e6}),
    ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("phi3", {"rope_scaling": None}),
]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_every_key_and_tensor_is_the_same_or_explained(
    tmp_path: Path, transformers_python: Path, converter_script: Path, family: str, changes: dict[str, Any]
) -> None:
    folder = checkpoint(tmp_path / "model", family, changes)
    to_gguf(folder, tmp_path / "own.gguf", name="model")
    converter = Converter(converter_script, transformers_python, is_pinned=True, packages={})
    theirs = tmp_path / "theirs.gguf"
    convert(converter, choose(folder, "llama.cpp"), resolve(str(folder)), theirs, float_type="F16")
    assert differences(tmp_path / "own.gguf", theirs) == []


def checkpoint(folder: Path, family: str, changes: Mapping[str, Any]) -> Path:
    """A tiny model with the kind of tokenizer files that the family's authors publish."""
    folder.mkdir()
    if family in {"llama3", "qwen2", "qwen3"}:
        n_vocab = small_tokenizer(folder)
        # transformers adds this token to a Qwen 2 that lacks it.
        path, end = folder / "tokenizer.json", "<|endoftext|>"
        path.write_text(path.read_text().replace("<|end|>", end))
        told = {"eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
    else:
        n_vocab = sentencepiece_tokenizer(folder, prefix=not family.startswith("gemma"))
    config = config_of(family, n_vocab) | {"eos_token_id": n_vocab - 1 if family in {"llama3", "qwen2", "qwen3"} else 2}
    config |= {"bos_token_id": None if family in {"llama3", "qwen2", "qwen3"} else 1, **changes}
    config["model_type"] = MODEL_TYPES[config["architectures"][0]]
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, random_weights(config), dtype="BF16")
    return folder


def sentencepiece_tokenizer(folder: Path, *, prefix: bool) -> int:
    """tokenizer.model with single letters, some pairs and all bytes; returns its number of pieces."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    letters = "▁etaoinshrdlu"
    pairs = [left + right for left in letters for right in letters[1:]]
    pieces += [(text, -float(rank), 1) for rank, text in enumerate([*pairs, *letters])]
    out = bytearray()
    for text, score, kind in pieces:
        number = np.float32(score).tobytes()
        out += message(1, message(1, text.encode()) + varint(2 << 3 | 5) + number + varint(3 << 3) + varint(kind))
    out += message(2, setting(3, 2) + setting(35, 1)) + message(3, setting(3, int(prefix)) + setting(4, 0))
    (folder / "tokenizer.model").write_bytes(bytes(out))
    told = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"tokenizer_class": "LlamaTokenizer"}))
    return len(pieces)


def differences(own: Path, theirs: Path) -> list[str]:
    """What the tables do not explain."""
    ours, other = read_header(own), read_header(theirs)
    found = []
    for key in sorted({*ours.metadata, *other.metadata}):
        mine, their = value(ours, key), value(other, key)
        if mine is None and explained(key, THEIRS_ALONE, ours.architecture):
            continue
        if their is None and explained(key, OURS_ALONE, ours.architecture):
            continue
        if mine != their:
            found.append(f"{key}: ours {shortened(mine)}, theirs {shortened(their)}")
    return found + [f"tensor {name}" for name in different_tensors(own, ours, theirs, other)]


def value(header: GgufHeader, key: str) -> Any:
    return header.array(key) or header.metadata.get(key)


def explained(key: str, table: Mapping[str, str], arch: str) -> bool:
    return any(
        key == name.replace("*", arch, 1) or (name.endswith(".*") and key.startswith(name[:-1])) for name in table
    )


def shortened(value: Any) -> str:
    return repr(value)[:80]


def different_tensors(own: Path, ours: GgufHeader, theirs: Path, other: GgufHeader) -> list[str]:
    """Names of those of other types, shapes or numbers; factors are compared to the last bit but one or two."""
    mine, their = ({tensor.name: tensor for tensor in header.tensors} for header in (ours, other))
    found = sorted(mine.keys() ^ their.keys())
    for name in sorted(mine.keys() & their.keys()):
        (a, b) = mine[name], their[name]
        if (a.type, a.shape) != (b.type, b.shape):
            found.append(name)
            continue
        left = np.fromfile(own, np.uint8, a.n_bytes, offset=ours.data_offset + a.offset)
        right = np.fromfile(theirs, np.uint8, b.n_bytes, offset=other.data_offset + b.offset)
        is_same = np.array_equal(left, right)
        if name.startswith("rope_f"):  # computed: in double precision there, or in single
            is_same = np.allclose(left.view("<f4"), right.view("<f4"), rtol=1e-6)
        if not is_same:
            found.append(name)
    return found
