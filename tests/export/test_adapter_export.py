"""A PEFT LoRA as a GGUF adapter and merged: the numbers of the definition, or a refusal by name before weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import FAMILIES, Weights, config_of, random_weights, tiny_model, write_safetensors, write_torch
from loopback_hub import LoopbackHub
from loras import FUSED, LINEAR, peft_folder, write_peft

from edgellm.cli.main import main
from edgellm.export import bundle, manifest
from edgellm.export.check.reference import reference_logits
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.hf_to_gguf import to_gguf
from edgellm.export.lora.adapter_export import AdapterRequest, export_adapter, judged, reproduce_adapter
from edgellm.export.lora.adapter_source import resolve_adapter, resolve_base
from edgellm.export.lora.adapters import read_adapter
from edgellm.export.lora.lora_gguf import check_can_be_applied, write_adapter
from edgellm.export.lora.merging import merge, write_merged
from edgellm.export.read.checkpoint import read_checkpoint, read_weights
from edgellm.export.read.facts import UnsupportedModel
from edgellm.memory.adapter import read_adapter as read_gguf_adapter
from edgellm.memory.gguf import read_header

TOKENS = [5, 17, 250, 260, 3, 99, 42, 42, 7, 200, 111, 64]


def weights_of(family: str) -> Weights:
    """Those that `tiny_model` writes."""
    return random_weights(config_of(family, 304))


def base_of(folder: Path, family: str = "llama") -> Path:
    return tiny_model(folder / "base", family)


def linear(family: str) -> tuple[str, ...]:
    return FUSED if family == "phi3" else LINEAR


def ignore(_: object) -> None:
    pass


def loaded(adapter: Path, base: Path) -> Any:
    source = resolve_adapter(str(adapter))
    shapes = judged(source, resolve_base(str(base)), merge=True)
    return read_adapter(adapter, shapes), shapes


def merged_by_hand(base: Path, adapter: Path, folder: Path, scales: dict[str, float]) -> Path:
    """The definition: W + scale B A, in float64. `scales`: by the end of a module's name, "" for the others."""
    shutil.copytree(base, folder)
    halves = read_weights(adapter / "adapter_model.safetensors")
    tensors = {name: np.frombuffer(t.read(), "<f4").reshape(t.shape) for name, t in read_checkpoint(base).items()}
    for name in [
        name for name in tensors if f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight" in halves
    ]:
        at = f"base_model.model.{name.removesuffix('.weight')}"
        pair = [halves[f"{at}.lora_{half}.weight"] for half in "AB"]
        a, b = (np.frombuffer(half.read(), "<f4").reshape(half.shape) for half in pair)
        scale = next((value for end, value in scales.items() if end and end in name), scales[""])
        tensors[name] = (tensors[name] + scale * b.astype(np.float64) @ a).astype(np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def error(found: Any, expected: Any) -> float:
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_applied_and_merged_it_gives_the_logits_of_the_sum(family: str, tmp_path: Path) -> None:
    base = base_of(tmp_path, family)
    first, last = linear(family)[0], linear(family)[-1]
    config = {"use_rslora": True, "alpha_pattern": {last: 3, f"layers.1.{'self_attn'}.{first}": 16}}
    folder = peft_folder(tmp_path / "adapter", weights_of(family), linear(family), rank=8, **config)
    adapter, shapes = loaded(folder, base)
    scales = {f"layers.1.self_attn.{first}": 16 / math.sqrt(8), last: 3 / math.sqrt(8), "": 8 / math.sqrt(8)}
    expected = reference_logits(merged_by_hand(base, folder, tmp_path / "by-hand", scales), TOKENS)
    assert error(reference_logits(base, TOKENS), expected) > 0.1
    write_merged(base, adapter, tmp_path / "merged")
    assert error(reference_logits(tmp_path / "merged", TOKENS), expected) < 1e-4

    whole, applied, merged = (tmp_path / name for name in ("base.gguf", "lora.gguf", "merged.gguf"))
    to_gguf(base, whole, float_type="F32")
    write_adapter(adapter, shapes, applied, "F32", {})
    to_gguf(base, merged, float_type="F32", adapt=partial(merge, adapter=adapter))
    assert error(engine_jobs.logits(whole, TOKENS, lora=applied), expected) < 2e-3
    assert error(engine_jobs.logits(merged, TOKENS), expected) < 2e-3


def test_embedding_and_head_are_adapted_apart_where_they_are_two_and_merged_where_they_are_one(tmp_path: Path) -> None:
    for family, tied in (("llama", False), ("qwen2", True)):
        base = base_of(tmp_path / family, family)
        folder = peft_folder(tmp_path / family / "adapter", weights_of(family), ("embed_tokens", "lm_head", "q_proj"))
        adapter, shapes = loaded(folder, base)
        write_merged(base, adapter, tmp_path / family / "merged")
        expected = reference_logits(tmp_path / family / "merged", TOKENS)
        merged = tmp_path / family / "merged.gguf"
        to_gguf(base, merged, float_type="F32", adapt=partial(merge, adapter=adapter))
        assert error(engine_jobs.logits(merged, TOKENS), expected) < 2e-3
        if tied:
            assert "output.weight" in {tensor.name for tensor in read_header(merged).tensors}
            with pytest.raises(UnsupportedModel, match=r"one matrix is both embedding and head in base.*--merge"):
                check_can_be_applied(adapter, shapes)
            continue
        whole, applied = tmp_path / "base.gguf", tmp_path / "lora.gguf"
        to_gguf(base, whole, float_type="F32")
        write_adapter(adapter, shapes, applied, "F32", {})
        assert error(engine_jobs.logits(whole, TOKENS, lora=applied), expected) < 2e-3


def test_dora_whole_modules_and_biases_are_merged_and_not_applied(tmp_path: Path) -> None:
    base, weights = base_of(tmp_path, "llama-biased"), weights_of("llama-biased")
    name = "model.layers.0.self_attn.q_proj"
    a, b = np.full((4, 64), 0.1, np.float32), np.linspace(-1, 1, 256, dtype=np.float32).reshape(64, 4)
    halves = {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    lengths = np.linspace(0.5, 2, 64, dtype=np.float32)
    summed = weights[f"{name}.weight"] + 2 * b @ a
    cases: list[tuple[Weights, dict[str, Any], str, Any, str]] = [
        (
            halves | {f"base_model.model.{name}.lora_magnitude_vector": lengths},
            {"use_dora": True, "target_modules": ["layers.0.self_attn.q_proj"]},
            "blk.0.attn_q.weight",
            summed * (lengths / np.linalg.norm(summed, axis=1))[:, None],
            "is a DoRA",
        ),
        (
            halves | {f"base_model.model.{name}.base_layer.bias": lengths},
            {"bias": "lora_only", "target_modules": ["layers.0.self_attn.q_proj"]},
            "blk.0.attn_q.bias",
            lengths,
            "base_layer.bias whole",
        ),
        (
            halves | {"base_model.model.model.norm.weight": lengths},
            {"modules_to_save": ["norm"], "target_modules": ["layers.0.self_attn.q_proj"]},
            "output_norm.weight",
            lengths,
            r"norm whole \(modules_to_save\)",
        ),
    ]
    for number, (tensors, config, changed, expected, sentence) in enumerate(cases):
        adapter, shapes = loaded(write_peft(tmp_path / f"adapter{number}", tensors, **config), base)
        with pytest.raises(UnsupportedModel, match=f"{sentence}.*--merge"):
            check_can_be_applied(adapter, shapes)
        write_merged(base, adapter, tmp_path / f"merged{number}")
        hub = {"blk.0.attn_q.weight": f"{name}.weight", "blk.0.attn_q.bias": f"{name}.bias"}
        hub_name = hub.get(changed, "model.norm.weight")
        tensor = read_checkpoint(tmp_path / f"merged{number}")[hub_name]
        np.testing.assert_allclose(np.frombuffer(tensor.read(), "<f4").reshape(tensor.shape), expected, rtol=1e-5)


def test_small_numbers_keep_their_places_in_half_precision(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    weights = {}
    for name, value in peft_weights(tmp_path).items():
        weights[name] = value * np.float32(1e-7 if "lora_B" in name else 1e4)
    adapter, shapes = loaded(write_peft(tmp_path / "adapter", weights, target_modules=["q_proj"]), base)
    write_adapter(adapter, shapes, tmp_path / "lora.gguf", "F16", {})
    header = read_header(tmp_path / "lora.gguf")
    a, b = (
        np.fromfile(header.path, "<f2", t.n_bytes // 2, offset=header.data_offset + t.offset).reshape(t.shape[::-1])
        for t in header.tensors[:2]
    )
    b = b.reshape(4, 8, 2, 4).swapaxes(1, 2).reshape(64, 4)  # as the Hub has the rows of a head
    at = "base_model.model.model.layers.0.self_attn.q_proj"
    expected = weights[f"{at}.lora_B.weight"] @ weights[f"{at}.lora_A.weight"]
    assert error(b.astype(np.float32) @ a.astype(np.float32), expected) < 2e-3


def peft_weights(folder: Path, *targets: str) -> Weights:
    made = peft_folder(folder / "made", weights_of("llama"), targets or ("q_proj",))
    tensors = read_weights(made / "adapter_model.safetensors")
    return {name: np.frombuffer(t.read(), "<f4").reshape(t.shape) for name, t in tensors.items()}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "is an adapter of type 'IA3', and LoRA is exported"),
    ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
    ({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}}, "is an adapter of MLX"),
    ({"init_lora_weights": "pissa"}, "was begun by 'pissa'"),
    ({"init_lora_weights": "pissa_niter_4"}, "takes a part out of its base model"),
    ({"init_lora_weights": "olora"}, "'olora'"),
    ({"init_lora_weights": "corda"}, "'corda'"),
    ({"init_lora_weights": "loftq"}, "'loftq'"),
    ({"lora_bias": True}, "its B has biases"),
    ({"megatron_config": {"x": 1}}, "megatron_config"),
    ({"trainable_token_indices": [1]}, "single tokens of the embedding"),
    ({"layer_replication": [[0, 2]]}, "repeats layers"),
    ({"target_parameters": ["experts"]}, "no layers of their own"),
    ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
    ({"use_qalora": True}, "QALoRA"),
    ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
    ({"kasa_config": {"beta": 1}}, "KaSA"),
    ({"something_new": 3}, "has something_new 3 in adapter_config.json, which no LoRA is known to have"),
    ({"r": 0}, "incomplete or damaged"),
    ({"r": "8"}, "incomplete or damaged"),
    ({"lora_alpha": None}, "incomplete or damaged"),
    ({"bias": "some"}, "incomplete or damaged"),
    ({"alpha_pattern": {"(a+)+": 8}}, "too involved"),
    ({"rank_pattern": {"(": 8}}, "is no expression"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_a_variant_that_would_be_wrong_is_refused_from_its_configuration_alone(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    base = base_of(tmp_path)
    folder = write_peft(tmp_path / "adapter", {}, **{"target_modules": ["q_proj"], **changes})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=sentence.replace("(", r"\(")):
        judged(resolve_adapter(str(folder)), resolve_base(str(base)))


@pytest.mark.parametrize(
    "idle",
    [
        {"lora_dropout": 0.1, "peft_version": "0.21.2", "inference_mode": True, "fan_in_fan_out": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"layers_to_transform": None, "megatron_core": "megatron.core", "loftq_config": {}},
        {"target_modules": ".*q_proj"},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"^model\.layers\.0\.mlp\.up_proj": 2}},
    ],
)
def test_what_changes_no_number_is_no_obstacle(tmp_path: Path, idle: dict[str, Any]) -> None:
    base = base_of(tmp_path)
    folder = peft_folder(tmp_path / "adapter", weights_of("llama"), ("q_proj",))
    document = json.loads((folder / "adapter_config.json").read_text()) | idle
    (folder / "adapter_config.json").write_text(json.dumps(document))
    adapter, _ = loaded(folder, base)
    assert {name: pair.scale for name, pair in adapter.pairs.items()} == {
        "blk.0.attn_q.weight": 2.0,
        "blk.1.attn_q.weight": 2.0,
    }


def damaged(weights: Weights, **changes: Any) -> Weights:
    return {name: value for name, value in (weights | changes).items() if value is not None}


AT = "base_model.model.model.layers.0.self_attn.q_proj"
DAMAGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({f"{AT}.lora_B.weight": None}, {}, r"model.layers.0.self_attn.q_proj has no lora_B"),
    ({f"{AT}.lora_A.weight": None, f"{AT}.lora_B.weight": None}, {}, "lacks the tensors for model.layers.0.self"),
    ({f"{AT}.lora_A.weight": np.zeros((3, 64))}, {}, "which do not multiply"),
    ({f"{AT}.lora_A.weight": np.zeros((4, 60))}, {}, "as 64 x 60 where base has 64 x 64"),
    ({f"{AT}.lora_C.weight": np.zeros((4, 4))}, {}, "that no LoRA is known to have"),
    ({AT.removeprefix("base_model.model.") + ".lora_A.weight": np.zeros((4, 64))}, {}, "PEFT would not look at"),
    (
        {AT.replace("model.layers", "model.language_model.layers") + ".lora_A.weight": np.zeros((4, 64))},
        {},
        "no lora_B",
    ),
    ({"base_model.model.model.layers.0.mlp.extra_proj.lora_A.weight": np.zeros((4, 4))}, {}, "base has no place for"),
    ({"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": np.zeros((4, 64))}, {}, "no blk.7.attn_q"),
    ({"base_model.model.model.embed_tokens.base_layer.weight": np.zeros((9, 64))}, {}, "vocabulary was resized"),
    ({}, {"r": 8}, "has rank 4 where adapter_config.json says 8"),
    ({}, {"rank_pattern": {"q_proj": 2}}, "says 2"),
    ({}, {"target_modules": ["v_proj"]}, "which adapter_config.json does not name"),
    ({}, {"layers_to_transform": [1]}, "which adapter_config.json does not name"),
    ({}, {"exclude_modules": ["q_proj"]}, "which adapter_config.json does not name"),
    ({}, {"use_dora": True}, "lacks its magnitude vector"),
    ({f"{AT}.lora_magnitude_vector": np.zeros(64)}, {}, "has a magnitude vector"),
    ({}, {"modules_to_save": ["lm_head"]}, "lacks lm_head, which was trained whole"),
]


@pytest.mark.parametrize(("tensors", "config", "sentence"), DAMAGED)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, tensors: dict[str, Any], config: dict[str, Any], sentence: str
) -> None:
    base = base_of(tmp_path)
    weights = damaged(peft_weights(tmp_path), **tensors)
    folder = write_peft(tmp_path / "adapter", weights, **{"target_modules": ["q_proj"], **config})
    with pytest.raises(UnsupportedModel, match=sentence):
        loaded(folder, base)


def test_nan_is_refused_by_name_in_both_forms(tmp_path: Path) -> None:
    base, weights = base_of(tmp_path), peft_weights(tmp_path)
    weights[f"{AT}.lora_B.weight"] = np.full((64, 4), np.nan)
    adapter, shapes = loaded(write_peft(tmp_path / "adapter", weights, target_modules=["q_proj"]), base)
    for make in (
        lambda: write_adapter(adapter, shapes, tmp_path / "lora.gguf", "F16", {}),
        lambda: write_merged(base, adapter, tmp_path / "merged"),
    ):
        with pytest.raises(UnsupportedModel, match=r"lora_B\.weight holds NaN"):
            make()


def test_the_base_may_be_a_gguf_file_or_quantised_where_only_its_shapes_count(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    folder = peft_folder(tmp_path / "adapter", weights_of("llama"), LINEAR)
    to_gguf(base, tmp_path / "base.gguf")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    made = []
    for source in (tmp_path / "base.gguf", base):
        adapter, shapes = loaded(folder, source)
        write_adapter(adapter, shapes, tmp_path / "lora.gguf", "F16", {})
        made.append((tmp_path / "lora.gguf").read_bytes())
    assert made[0] == made[1]


def test_an_export_is_a_checked_folder_that_can_be_verified_repeated_and_packed(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    folder = peft_folder(tmp_path / "adapter", weights_of("llama"), ("q_proj", "down_proj"))
    source = resolve_adapter(str(folder)).complete()
    request = AdapterRequest(source, resolve_base(str(base)), ("F16", "F32"), tmp_path / "out")
    made = export_adapter(request, ignore)
    assert [(entry["role"], entry["path"]) for entry in made.files()] == [
        ("lora", "adapter-lora-F16.gguf"),
        ("lora", "adapter-lora-F32.gguf"),
    ]
    proof = made.document["lora"]["verification"]
    assert 0 < proof["F32"]["max_relative_error"] <= 2e-3
    assert read_gguf_adapter(tmp_path / "out" / "adapter-lora-F16.gguf").ranks == (4,)
    manifest.verify(tmp_path / "out")
    bundle.pack(tmp_path / "out", tmp_path / "app.zip")
    (tmp_path / "out" / "adapter-lora-F16.gguf").unlink()
    assert reproduce_adapter(request, made, ignore) == []
    manifest.verify(tmp_path / "out")
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)
    assert any("comes out otherwise" in sentence for sentence in reproduce_adapter(request, made, ignore))


def test_torchs_own_format_gives_the_same_adapter(tmp_path: Path) -> None:
    base, weights = base_of(tmp_path), peft_weights(tmp_path)
    made = []
    for number in range(2):
        folder = write_peft(tmp_path / f"adapter{number}", weights, target_modules=["q_proj"])
        if number:
            (folder / "adapter_model.safetensors").unlink()
            write_torch(folder / "adapter_model.bin", weights, dtype="F32")
        adapter, shapes = loaded(folder, base)
        write_adapter(adapter, shapes, tmp_path / "lora.gguf", "F16", {})
        made.append((tmp_path / "lora.gguf").read_bytes())
    assert made[0] == made[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process; its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["edgellm", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return int(left.value.code or 0)

    return call


def test_the_command_makes_an_adapter_or_one_model_and_repeats_both(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_of(tmp_path)
    folder = peft_folder(
        tmp_path / "tuned", weights_of("llama"), ("q_proj", "v_proj"), base_model_name_or_path=str(base)
    )
    assert run("export", folder, "-o", tmp_path / "lora", "--no-verify") == 0
    assert run("export", folder, "-o", tmp_path / "lora", "--locked") == 0
    assert run("export", folder, "--merge", "--quant", "Q8_0", "-o", tmp_path / "merged") == 0
    assert run("export", folder, "--merge", "-o", tmp_path / "merged", "--locked") == 0
    assert "identical to the bit" in capsys.readouterr().err
    told = manifest.read(tmp_path / "merged").document["target"]
    assert told["name"] == "base-tuned"
    assert set(told["adapter"]["source"]["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert "model.safetensors" in told["source"]["files"]
    assert told["verification"]["logits"]["max_relative_error"] <= 0.02


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--base", "MISSING/base"], "there is no file"),
        ([], "was trained on somebody/base, which cannot be had by that name"),
        (["--base", "BASE.gguf", "--merge"], "is merged into a checkpoint"),
        (["--base", "BASE", "--draft", "self"], "--draft does not go with an adapter"),
        (["--base", "BASE", "--quant", "Q4_0"], "is written as F16, F32, BF16, and not as Q4_0"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_sentence(
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = base_of(tmp_path)
    to_gguf(base, tmp_path / "base.gguf")
    folder = peft_folder(tmp_path / "tuned", weights_of("llama"), ("q_proj",), base_model_name_or_path="somebody/base")
    places = {
        "BASE": str(base),
        "BASE.gguf": str(tmp_path / "base.gguf"),
        "MISSING/base": str(tmp_path / "no" / "base"),
    }
    words = [places.get(word, word) for word in arguments]
    assert run("export", folder, *words, "-o", tmp_path / "out") in (1, 2)
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sentence in shown
    assert not (tmp_path / "out").exists()


def test_from_the_hub_only_configurations_come_before_a_refusal_and_no_base_weights_ever(
    tmp_path: Path, hub: LoopbackHub, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    base = base_of(tmp_path)
    folder = peft_folder(tmp_path / "tuned", weights_of("llama"), ("q_proj",), base_model_name_or_path="somebody/base")
    hub.add_folder("somebody/base", base)
    hub.add_folder("somebody/tuned", folder)
    assert run("export", "somebody/tuned", "-o", tmp_path / "lora") == 0
    tied = tiny_model(tmp_path / "tied", "qwen2")
    config = {"target_modules": ["lm_head"], "base_model_name_or_path": "somebody/tied"}
    hub.add_folder("somebody/tied", tied)
    hub.add_folder("somebody/dora", write_peft(tmp_path / "dora", {}, use_dora=True, target_modules=["q_proj"]))
    hub.add_folder("somebody/head", write_peft(tmp_path / "head", {}, **config))
    for name, sentence in (("dora", "somebody/dora is a DoRA"), ("head", "somebody/head adapts the head")):
        more = ("--base", "somebody/base") if name == "dora" else ()
        assert run("export", f"somebody/{name}", *more, "-o", tmp_path / name) == 1
        assert sentence in capsys.readouterr().err
        assert not hub.asked(f"{name}/resolve/{hub.repos[f'somebody/{name}'].commit}/adapter_model")
    fetched = " ".join(request.path for request in hub.asked("/resolve/"))
    assert "adapter_model.safetensors" in fetched
    assert "somebody/base/resolve" in fetched
    assert "/model.safetensors" not in fetched
