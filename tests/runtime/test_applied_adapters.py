"""LoRA adapters beside a target: applied as written, the same bits at every width, and refused before the engine is."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from loras import gguf_adapter
from tiny_gguf import write_tiny
from tiny_onnx import write_tiny_onnx

from edgellm.export.convert import gguf_writer as writer
from edgellm.memory.adapter import AdapterError, Lora, adapted, check_fits, read_adapter
from edgellm.memory.buffers import adapter_bytes
from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import read_header
from edgellm.memory.shape import from_header
from edgellm.runtime import ChatSession, EngineOptions, Sampling, load
from edgellm.runtime.backends.base import LoadError, Logits
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.bringup.exactness import exact_width, rows_at_width
from edgellm.runtime.bringup.load import load_target, with_drafter
from edgellm.runtime.bringup.loading import open_model

TOKENS = [1 + 7 * i % 255 for i in range(24)]
QUESTION = "Count: one two three one two three one two"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny(folder / "tiny.gguf", weights="Q8_0", n_layers=4, n_embd=128, n_ff=256, tied=False)


def logits(path: Path, *loras: Lora, width: int = 1, n_threads: int = 1) -> Logits:
    """Of TOKENS, read `width` at a time."""
    model = LlamaModel(path, ModelOptions(mmap=False, loras=loras))
    backend = LlamaBackend(model, ContextSettings(256, n_outputs=16, n_threads=n_threads))
    try:
        return rows_at_width(backend, TOKENS[:4], TOKENS[4:], width)
    finally:
        backend.close()
        model.close()


@pytest.mark.parametrize("kind", ["F16", "F32"])
@pytest.mark.parametrize("rank", [3, 8, 64])
def test_passes_of_every_width_give_the_same_bits_with_an_adapter_on(
    tiny: Path, tmp_path: Path, kind: str, rank: int
) -> None:
    if not kernels().active:
        pytest.skip("the engine's own kernels promise nothing")
    lora = Lora(
        gguf_adapter(tmp_path / "lora.gguf", tiny, rank=rank, kind=kind, parts=("output", "attn_q", "ffn_down"))
    )
    single = logits(tiny, lora)
    assert not np.allclose(single, logits(tiny), atol=0.05)
    for width in (2, 3, 5, 8, 16):
        assert np.array_equal(logits(tiny, lora, width=width, n_threads=2 if width == 5 else 1), single)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_whoever_drafts_the_adapted_target_says_the_same(
    tiny: Path, tmp_path: Path, exact: bool, temperature: float
) -> None:
    if not kernels().active and not exact:
        pytest.skip("the engine's own kernels promise nothing")
    foreign = write_tiny(tmp_path / "foreign.gguf", vocab="spm")
    lora = Lora(gguf_adapter(tmp_path / "lora.gguf", tiny))
    options = EngineOptions(n_ctx=512, n_draft=4, fixed=True, exact=exact, learn="off", loras=(lora,), n_threads=1)
    target, said = load_target(tiny, options), []
    for draft, copy in ((None, False), (None, True), (tiny, False), (foreign, True)):
        engine = with_drafter(target, draft, copy=copy)
        engine.backend.truncate(0)
        session = ChatSession(engine, sampling=Sampling(temperature=temperature, seed=7))
        said.append("".join(session.reply(QUESTION, max_tokens=32)))
        assert session.last is not None
        assert session.last.stats.n_drafted > 0 or (draft is None and not copy)
        engine.drafter.close()
    target.close()
    assert said[0]
    assert said.count(said[0]) == len(said)


def test_the_proof_of_exactness_sees_the_adapter(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = Lora(gguf_adapter(tmp_path / "lora.gguf", tiny))
    model = LlamaModel(tiny, ModelOptions(loras=(lora,)))
    backend = LlamaBackend(model, ContextSettings(256, n_outputs=4), pad_single=False)
    assert exact_width(backend) == (4 if kernels().active else 1)
    backend.close()
    model.close()


def test_a_scale_is_what_the_change_is_multiplied_by_and_two_adapters_add_up(tiny: Path, tmp_path: Path) -> None:
    one = gguf_adapter(tmp_path / "one.gguf", tiny, parts=("output",), kind="F32")
    two = gguf_adapter(tmp_path / "two.gguf", tiny, parts=("output",), kind="F32", seed=1)
    plain, whole = logits(tiny), logits(tiny, Lora(one))
    np.testing.assert_allclose(logits(tiny, Lora(one, 0.5)) - plain, (whole - plain) / 2, atol=1e-4)
    np.testing.assert_allclose(logits(tiny, Lora(one, -1)) - plain, plain - whole, atol=1e-4)
    assert np.array_equal(logits(tiny, Lora(one, 0)), plain)
    both = logits(tiny, Lora(one), Lora(two)) - plain
    np.testing.assert_allclose(both, whole - plain + logits(tiny, Lora(two)) - plain, atol=1e-4)


def test_the_drafter_is_left_as_it_is(tiny: Path, tmp_path: Path) -> None:
    lora = Lora(gguf_adapter(tmp_path / "lora.gguf", tiny))
    with load(tiny, tiny, EngineOptions(n_ctx=256, learn="off", loras=(lora,))) as engine:
        assert engine.draft_model is not None
        assert engine.model.options.loras == (lora,)  # type: ignore[union-attr]
        assert engine.draft_model.options.loras == ()  # type: ignore[union-attr]
        assert "lora.gguf is applied, at 1 times its strength" in engine.notes


Make = Callable[[Path, Path], Path]
REFUSED: list[tuple[str, Make, str]] = [
    ("a model", lambda path, model: model, "is a model and no adapter: name it as the model"),
    ("another type", lambda p, m: gguf_adapter(p, m, adapter__type=writer.string("control")), "of type 'control'"),
    ("another family", lambda p, m: gguf_adapter(p, m, general__architecture=writer.string("qwen2")), "is for qwen2"),
    ("no scale", lambda p, m: gguf_adapter(p, m, adapter__lora__alpha=writer.f32(float("nan"))), "alpha nan"),
    (
        "aLoRA",
        lambda p, m: gguf_adapter(p, m, adapter__alora__invocation_tokens=writer.i32s([1])),
        "from a phrase of the text on",
    ),
    ("nothing", lambda p, m: gguf_adapter(p, m, parts=()), "holds no tensors"),
    (
        "other widths",
        lambda p, m: gguf_adapter(p, write_tiny(p.with_name("wide.gguf"), n_embd=64, n_ff=128)),
        "as 64 x 64 where tiny.gguf has 128 x 128: it is for another model",
    ),
    (
        "more layers",
        lambda p, m: gguf_adapter(p, write_tiny(p.with_name("deep.gguf"), n_layers=6, n_embd=128, n_ff=256)),
        "adapts 'blk.4.",
    ),
]


@pytest.mark.parametrize(("make", "sentence"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_an_adapter_that_does_not_fit_is_refused_by_its_header(
    tiny: Path, tmp_path: Path, make: Make, sentence: str
) -> None:
    path = make(tmp_path / "lora.gguf", tiny)
    for options in (EngineOptions(n_ctx=256, loras=(Lora(path),)), EngineOptions(n_ctx=256, loras=(Lora(path, 0),))):
        with pytest.raises(LoadError, match=sentence):
            load(tiny, None, options)
    with pytest.raises(LoadError, match=sentence):
        LlamaModel(tiny, ModelOptions(loras=(Lora(path),)))


def test_one_half_alone_a_foreign_tensor_and_halves_of_two_ranks_are_named(tiny: Path, tmp_path: Path) -> None:
    whole = gguf_adapter(tmp_path / "lora.gguf", tiny, parts=("output",), kind="F32")
    for old, new, sentence in (
        (b"output.weight.lora_b", b"output.weight.lora_c", "llama.cpp does not apply"),
        (b"output.weight.lora_b", b"output.wEight.lora_b", "one half alone"),
    ):
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(whole.read_bytes().replace(old, new))
        with pytest.raises(AdapterError, match=sentence):
            read_adapter(bad)
    with pytest.raises(AdapterError, match="a scale of nan is none"):
        Lora(whole, float("nan"))


def test_an_embedding_that_is_the_head_too_is_refused_and_not_run(tmp_path: Path) -> None:
    """The engine ends the process there: it takes the embedding's adapter for the head's."""
    tied = write_tiny(tmp_path / "tied.gguf")
    pairs = [
        writer.PlannedTensor(f"token_embd.weight.lora_{side}", (4, n), "F32", lambda n=n: [bytes(16 * n)])
        for side, n in (("a", 320), ("b", 64))
    ]
    head = {
        "general.architecture": writer.string("llama"),
        "general.type": writer.string("adapter"),
        "adapter.type": writer.string("lora"),
    }
    writer.write_gguf(tmp_path / "lora.gguf", head, pairs)
    adapter, model = read_adapter(tmp_path / "lora.gguf"), read_header(tied)
    assert adapter.ranks == (4,)
    with pytest.raises(AdapterError, match="cannot tell them apart"):
        check_fits(adapter, model)


def test_an_onnx_model_takes_no_adapter(tiny: Path, tmp_path: Path) -> None:
    folder = write_tiny_onnx(tmp_path / "onnx")
    lora = Lora(gguf_adapter(tmp_path / "lora.gguf", tiny))
    with pytest.raises(LoadError, match="is an ONNX model, to which no adapter is applied"):
        load(folder, None, EngineOptions(n_ctx=64, loras=(lora,)))
    with pytest.raises(LoadError, match="is an ONNX model, to which no adapter is applied"):
        open_model(folder, ModelOptions(loras=(lora,)))


def test_an_adapter_named_as_the_model_is_told_as_one(tiny: Path, tmp_path: Path) -> None:
    path = gguf_adapter(tmp_path / "lora.gguf", tiny)
    for run in (lambda: load(path), lambda: load(tiny, path), lambda: LlamaModel(path)):
        with pytest.raises(LoadError, match="is an adapter and no model: give it with --lora beside its base model"):
            run()


@pytest.mark.parametrize("parts", [("attn_q", "attn_v"), ("ffn_gate", "ffn_up", "ffn_down"), ("output", "ffn_down")])
@pytest.mark.parametrize("rank", [16, 64])
def test_a_plan_counts_the_adapters_bytes_and_bounds_what_applying_them_takes(
    tiny: Path, tmp_path: Path, parts: tuple[str, ...], rank: int
) -> None:
    header = read_header(tiny)
    lora = Lora(gguf_adapter(tmp_path / "lora.gguf", tiny, parts=parts, rank=rank))
    shape = adapted(from_header(header), (lora,), header)
    assert shape.adapter_bytes == read_header(lora.path).tensor_bytes
    assert max(shape.adapter_width, shape.adapter_head_width) >= rank + 128


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "phi3"])
def test_the_planned_growth_bounds_what_the_engine_allocates(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = write_tiny(tmp_path / "tiny.gguf", architecture, n_layers=2, n_embd=128, n_ff=256)
    parts = ("attn_q", "attn_v", "attn_qkv", "attn_output", "ffn_up", "ffn_down")
    lora = Lora(gguf_adapter(tmp_path / "lora.gguf", base, rank=96, parts=parts))
    settings, sizes = ContextSettings(256, n_ubatch=128, n_outputs=4, n_threads=1), []
    caplog.set_level(logging.DEBUG, logger="edgellm.llama_cpp")
    for loras in ((), (lora,)):
        model = LlamaModel(base, ModelOptions(mmap=False, loras=loras))
        backend = LlamaBackend(model, settings)
        backend.warm_up()
        found = [re.search(r"compute buffer size = +([\d.]+) MiB", line) for line in caplog.messages]
        sizes.append([float(match[1]) * 2**20 for match in found if match][-1])
        backend.close()
        model.close()
    header = read_header(base)
    shape = adapted(from_header(header), (lora,), header)
    assert sizes[1] - sizes[0] <= adapter_bytes(shape, settings) + 0.02 * 2**20
