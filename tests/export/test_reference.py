"""The check of an export reads the configuration on its own: what the export misreads, it sees."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import LLAMA3_ROPE, LONG_ROPE, random_weights, tiny_model, write_weights

from edgellm.export.check import reference, reference_config
from edgellm.export.check.fidelity import VerificationFailed, check_logits
from edgellm.export.check.reference import NoReference, reference_logits
from edgellm.export.convert import hf_to_gguf, tensors
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.read import facts, families, rope

Patch = Callable[[pytest.MonkeyPatch], None]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def edited(folder: Path, **changes: Any) -> Path:
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


def misread(**wrongly: Any) -> Patch:
    """The export takes these for what config.json says."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        read = facts.read_config
        monkeypatch.setattr(hf_to_gguf, "read_config", lambda folder: (read(folder)[0], read(folder)[1] | wrongly))

    return patch


def misread_rope(**wrongly: Any) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        read = rope.read_rope
        monkeypatch.setattr(hf_to_gguf, "read_rope", lambda *told: read(*told) | wrongly)

    return patch


def mistaken_family(**wrongly: Any) -> Patch:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        read = facts.read_config
        monkeypatch.setattr(
            hf_to_gguf, "read_config", lambda folder: (replace(read(folder)[0], **wrongly), read(folder)[1])
        )

    return patch


def put(module: Any, name: str, value: Any) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


SWAPPED = {"short_factor": LONG_ROPE["long_factor"], "long_factor": LONG_ROPE["short_factor"]}
MISTAKES: dict[str, tuple[str, dict[str, Any], Patch]] = {
    "base of the rotary embedding": ("llama", {}, misread_rope(rope_theta=5e5)),
    "base where Gemma 3 slides": ("gemma3", {}, misread_rope(local_theta=1e6)),
    "factor of linear scaling": (
        "qwen3", {"rope_scaling": {"type": "linear", "factor": 4.0}}, misread_rope(factor=2.0),
    ),
    "yarn's attention_factor": (
        "llama", {"rope_scaling": {**YARN, "attention_factor": 0.7}}, put(rope, "_yarn_amplitude", lambda _: 1.1386),
    ),
    "yarn's original context": (
        "qwen2", {"rope_scaling": YARN}, misread_rope(original_max_position_embeddings=256),
    ),
    "Llama 3's factors": ("llama", {"rope_scaling": LLAMA3_ROPE}, put(rope, "_llama3_factors", lambda _: [1.0] * 8)),
    "Phi-3's factors": ("phi3", {}, misread_rope(**SWAPPED)),
    "Phi-3's amplitude": ("phi3", {}, put(rope, "_longrope_amplitude", lambda *_: 1.0)),
    "default of the norms' epsilon": ("phi3", {"rms_norm_eps": 0.05}, misread(rms_norm_eps=1e-5)),
    "order of Gemma's halves": ("gemma2", {}, mistaken_family(gemma=True, permute=True)),
    "scale of Gemma's queries": ("gemma2", {"query_pre_attn_scalar": 128}, misread(query_pre_attn_scalar=32)),
    "cap of the logits": ("gemma2", {"final_logit_softcapping": 5.0}, misread(final_logit_softcapping=30.0)),
    "cap of the scores": ("gemma2", {"attn_logit_softcapping": 1.0}, misread(attn_logit_softcapping=50.0)),
    "a missing cap": ("gemma3", {"final_logit_softcapping": 5.0}, misread(final_logit_softcapping=None)),
    "which layers slide": ("gemma3", {"sliding_window_pattern": 3}, misread(sliding_window_pattern=6)),
    "how far a layer looks back": ("gemma3", {}, misread(sliding_window=64)),
    "a window that llama.cpp does not have": (
        "mistral", {"sliding_window": 512, "max_position_embeddings": 1024}, misread(sliding_window=None),
    ),
    "activation": (
        "llama", {"hidden_act": "gelu"}, lambda patch: patch.setitem(families._SILU, "hidden_act", ("silu", "gelu")),
    ),
    "order of a head's halves": ("llama", {}, mistaken_family(permute=False)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_the_export_misreads_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    family, changes, patch = MISTAKES[mistake]
    folder = edited(tiny_model(tmp_path / "tiny", family), **changes)
    patch(monkeypatch)
    to_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(VerificationFailed, match="gives other logits than the checkpoint"):
        check_logits(folder, tmp_path / "model.gguf")


def test_a_head_that_the_export_leaves_out_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", "llama"), tie_word_embeddings=True)
    weights = random_weights(json.loads((folder / "config.json").read_text()))
    write_weights(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"][::-1].copy()})
    monkeypatch.setattr(tensors, "_same", lambda *_: True)
    to_gguf(folder, tmp_path / "model.gguf")
    with pytest.raises(VerificationFailed):
        check_logits(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("family", "changes", "longest"),
    [
        ("llama", {}, 96),
        ("gemma3", {}, 96),
        ("gemma3", {"sliding_window": 100, "max_position_embeddings": 1024}, 132),
        ("mistral", {"sliding_window": 600, "max_position_embeddings": 1024}, 600),
        ("llama", {"rope_scaling": {**YARN, "original_max_position_embeddings": 150}}, 182),
        ("phi3", {}, 288),
    ],
)
def test_a_check_looks_beyond_windows_and_stretched_positions_within_the_context(
    tmp_path: Path, family: str, changes: dict[str, Any], longest: int
) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", family), **changes)
    to_gguf(folder, tmp_path / "model.gguf")
    report = check_logits(folder, tmp_path / "model.gguf")
    assert isinstance(report, dict)
    assert report["longest_text"] == longest
    assert report["n_tokens"] >= 64


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "olmo2"}, "'olmo2'"),
        ({"rope_scaling": {"rope_type": "proportional"}}, "'proportional' .rope_type"),
        ({"hidden_act": "quick_gelu"}, "'quick_gelu'"),
        ({"text_config": {"hidden_size": 3}}, "text_config"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
    ],
)
def test_what_the_reference_does_not_know_is_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folder = edited(tiny_model(tmp_path / "tiny", "llama"), **changes)
    with pytest.raises(NoReference, match=named):
        reference_logits(folder, [1, 2, 3])


def test_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", "gemma3")
    tokens = list(range(3, 40))
    whole = reference_logits(folder, tokens)
    assert np.allclose(reference_logits(folder, tokens, [0, 5, 36]), whole[[0, 5, 36]], atol=1e-4)


def test_long_texts_are_attended_piece_by_piece_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tmp_path / "tiny", "gemma2")
    tokens = list(range(3, 60))
    whole = reference_logits(folder, tokens)
    monkeypatch.setattr(reference, "_N_QUERIES", 7)
    assert np.allclose(reference_logits(folder, tokens), whole, atol=1e-4)


@pytest.mark.parametrize("module", [reference, reference_config])
def test_the_reference_shares_no_reading_with_the_export(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in names if name and name.startswith("edgellm.")}
    without_reading = {"edgellm.memory.errors", "edgellm.memory.files"}  # a base class, and a number of bytes
    assert ours <= {"edgellm.export.read.checkpoint", "edgellm.export.check.reference_config"} | without_reading
