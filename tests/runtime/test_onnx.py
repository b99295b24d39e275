"""The onnxruntime backend on tiny graphs of both shapes: true after every rollback, a sentence for a bad folder."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny
from tiny_onnx import write_tiny_onnx

from edgellm.memory.context import ContextSettings
from edgellm.memory.onnx_graph import OnnxError, read_graph
from edgellm.runtime import ChatSession, EngineOptions, load
from edgellm.runtime.backends.base import BadNumbers, ContextFull, EngineError, Interrupted, LoadError
from edgellm.runtime.backends.onnx_provider import choose_provider
from edgellm.runtime.backends.onnx_runtime import OnnxBackend, OnnxModel
from edgellm.runtime.bringup.exactness import rows_at_width
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.sampling import GREEDY

TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, 256, 500)]
OPTIONS = ContextSettings(n_ctx=200, n_ubatch=32, n_outputs=6, n_threads=1)
SHAPES = [
    pytest.param({"shared": True}, id="one-buffer"),
    pytest.param({"shared": True, "quantised": True}, id="one-buffer-int4"),
    pytest.param({"shared": False}, id="growing"),
    pytest.param({"shared": False, "quantised": True}, id="growing-int4"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def written(**shape: bool) -> Path:
        key = str(sorted(shape.items()))
        if key not in made:
            made[key] = write_tiny_onnx(tmp_path_factory.mktemp("onnx") / "tiny", **shape)
        return made[key]

    return written


def opened(folder: Path, options: ContextSettings = OPTIONS) -> OnnxBackend:
    return OnnxBackend(OnnxModel(folder), options)


@pytest.mark.parametrize("shape", SHAPES)
def test_after_any_rollback_logits_are_those_of_a_fresh_reading(
    tiny: Callable[..., Path], shape: dict[str, bool]
) -> None:
    backend, reference = opened(tiny(**shape)), opened(tiny(**shape))
    rng = random.Random(1)
    for _ in range(60):
        backend.truncate(rng.randint(max(0, len(backend.tokens) - 8), len(backend.tokens)))
        if len(backend.tokens) > 180:
            backend.truncate(rng.randint(0, 40))
        new = rng.sample(range(256), rng.randint(1, 6))
        found = backend.forward(new, n_outputs=len(new)).copy()
        reference.truncate(0)
        expected = reference.forward(backend.tokens, n_outputs=len(new))
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_passes_of_every_width_agree_bit_for_bit(tiny: Callable[..., Path], shape: dict[str, bool]) -> None:
    backend = opened(tiny(**shape))
    reference = rows_at_width(backend, TOKENS[:8], TOKENS[8:32], 1)
    for width in range(2, backend.max_outputs + 1):
        assert np.array_equal(rows_at_width(backend, TOKENS[:8], TOKENS[8:32], width), reference), width


@pytest.mark.parametrize("shape", SHAPES)
def test_drafting_never_changes_greedy_output(tiny: Callable[..., Path], shape: dict[str, bool]) -> None:
    backend = opened(tiny(**shape))
    prompt = (TOKENS[:6] * 4)[:20]

    def answer(drafter: NoDrafter | AdaptiveDrafter) -> list[int]:
        backend.truncate(0)
        drafter.begin(prompt)
        steps = generate(backend, drafter, prompt, GREEDY, n_draft=5, max_new=60)
        return [token for step in steps for token in step.tokens]

    copying = AdaptiveDrafter(backend, None, conversation=NgramIndex(OPTIONS.n_ctx), fixed=5)
    assert answer(copying) == answer(NoDrafter())
    assert copying.choices.n_drafted


def test_a_prompt_read_in_pieces_gives_what_reading_it_at_once_gives(tiny: Callable[..., Path]) -> None:
    folder = tiny(shared=True)
    whole = opened(folder, replace(OPTIONS, n_ubatch=128)).forward(TOKENS[:99], n_outputs=2).copy()
    np.testing.assert_allclose(
        opened(folder, replace(OPTIONS, n_ubatch=7)).forward(TOKENS[:99], n_outputs=2), whole, atol=1e-4
    )


def test_the_last_place_of_a_context_can_be_used_and_no_more(tiny: Callable[..., Path]) -> None:
    for shared in (True, False):
        backend = opened(tiny(shared=shared), replace(OPTIONS, n_ctx=40))
        backend.forward(TOKENS[:39], n_outputs=0)
        last = backend.forward(TOKENS[39:40], n_outputs=1).copy()
        backend.truncate(35)
        np.testing.assert_allclose(backend.forward(TOKENS[35:40], n_outputs=1), last, atol=1e-4)
        with pytest.raises(ContextFull, match="--ctx"):
            backend.forward(TOKENS[40:41], n_outputs=1)


def test_a_graph_without_a_choice_of_rows_gives_the_same_logits(tiny: Callable[..., Path], tmp_path: Path) -> None:
    import onnx

    folder = write_tiny_onnx(tmp_path / "all-rows")
    model = onnx.load(folder / "model.onnx")
    inputs = [value for value in model.graph.input if value.name != "logits_start"]
    del model.graph.input[:]
    model.graph.input.extend(inputs)  # its default stays as a constant: every row
    onnx.save_model(model, folder / "model.onnx")
    expected = opened(tiny(shared=True)).forward(TOKENS[:50], n_outputs=4).copy()
    np.testing.assert_allclose(opened(folder).forward(TOKENS[:50], n_outputs=4), expected, atol=1e-5)


def test_reading_can_be_stopped_between_two_pieces(tiny: Callable[..., Path]) -> None:
    stop = threading.Event()
    backend = OnnxBackend(OnnxModel(tiny(shared=True)), OPTIONS, stop_asked=stop)
    stop.set()
    with pytest.raises(Interrupted):
        backend.forward(TOKENS[:150], n_outputs=0)
    stop.clear()
    assert backend.forward(TOKENS[:4], n_outputs=4).shape == (4, backend.n_vocab)


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_that_are_none_are_told_and_never_answered_from(shape: dict[str, bool], tmp_path: Path) -> None:
    folder = write_tiny_onnx(tmp_path / "bad", **shape)
    data = folder / "model.onnx.data"
    data.write_bytes(np.full(data.stat().st_size // 4, np.nan, np.float32).tobytes())
    with pytest.raises(BadNumbers, match="bad computes numbers that are none"):
        opened(folder).forward(TOKENS[:4], n_outputs=2)


def test_a_token_outside_the_vocabulary_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(EngineError, match="vocabulary"):
        opened(tiny(shared=True)).forward([10**6], n_outputs=1)


@pytest.mark.parametrize("drafted_by", ["gguf", "onnx"])
def test_pairs_across_engines_answer_as_the_target_alone(
    tiny: Callable[..., Path], tmp_path: Path, drafted_by: str
) -> None:
    folder, gguf = tiny(shared=True), write_tiny(tmp_path / "tiny.gguf", "llama")
    target, draft = (folder, gguf) if drafted_by == "gguf" else (gguf, folder)

    def answer(draft: Path | None) -> str:
        with load(target, draft, EngineOptions(n_ctx=200, n_threads=1, copy=False, exact=True)) as engine:
            session = ChatSession(engine)
            return "".join(session.reply("the heat", max_tokens=24))

    assert answer(draft) == answer(None)


def test_every_text_survives_the_tokenizer(tiny: Callable[..., Path]) -> None:
    vocabulary = OnnxModel(tiny(shared=True)).vocabulary
    for data in (b"the  tree\n", "naïve 你好 🙂".encode(), b"\xff\x00\xc3", b"<|end|>", b""):
        tokens = vocabulary.encode(data)
        assert vocabulary.decode(tokens) == data
        assert not vocabulary.control.intersection(tokens)
    assert vocabulary.end_tokens == {vocabulary.literals["<|end|>"]}


# ---- folders that are not what they should be ------------------------------------------------------------------------


def broken(tmp_path: Path, change: Callable[[Path], object]) -> str:
    folder = write_tiny_onnx(tmp_path / "broken")
    change(folder)
    with pytest.raises(LoadError) as caught:
        opened(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_weights_that_are_cut_off_are_named(tmp_path: Path) -> None:
    def cut(folder: Path) -> None:
        data = folder / "model.onnx.data"
        data.write_bytes(data.read_bytes()[:-100])

    assert "model.onnx.data has" in broken(tmp_path, cut)


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    assert "model.onnx.data is missing" in broken(tmp_path, lambda folder: (folder / "model.onnx.data").unlink())


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "past_key_values.0.key"])
def test_a_graph_without_an_input_of_a_decoder_is_refused(tmp_path: Path, name: str) -> None:
    def rename(folder: Path) -> None:
        import onnx

        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for value in model.graph.input:
            if name in value.name or (name.startswith("past") and value.name.startswith("past")):
                value.name = f"other_{value.name}"
        onnx.save_model(model, folder / "model.onnx")

    message = broken(tmp_path, rename)
    assert f"has no input {name}" in message
    assert "edgellm export" in message


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    def shrink(folder: Path) -> None:
        document = json.loads((folder / "tokenizer.json").read_text())
        document["model"]["vocab"] = dict(list(document["model"]["vocab"].items())[:100])
        document["model"]["merges"], document["added_tokens"] = [], []
        (folder / "tokenizer.json").write_text(json.dumps(document))

    assert "another model's tokenizer" in broken(tmp_path, shrink)


@pytest.mark.parametrize("n_bytes", [0, 7, 300, 2000])
def test_a_truncated_graph_is_refused(tmp_path: Path, n_bytes: int) -> None:
    def cut(folder: Path) -> None:
        path = folder / "model.onnx"
        path.write_bytes(path.read_bytes()[:n_bytes])

    assert "model.onnx" in broken(tmp_path, cut)


def test_damaged_graphs_never_cost_more_than_an_error(tmp_path: Path) -> None:
    path = write_tiny_onnx(tmp_path / "tiny") / "model.onnx"
    whole, rng = path.read_bytes(), random.Random(3)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            graph = read_graph(path)
            graph.check_data()
            _ = graph.kv, graph.shares_buffer, graph.operators
        except OnnxError:
            continue


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    def point_outside(folder: Path) -> None:
        path = folder / "model.onnx"
        path.write_bytes(path.read_bytes().replace(b"model.onnx.data", b"../../secrets.d"))

    assert "outside its folder" in broken(tmp_path, point_outside)


def test_a_folder_without_a_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    assert "no tokenizer.json" in broken(tmp_path, lambda folder: (folder / "tokenizer.json").unlink())


# ---- providers -------------------------------------------------------------------------------------------------------


def test_a_provider_is_taken_only_if_it_runs_the_whole_graph() -> None:
    cpu = "CPUExecutionProvider"
    chosen = choose_provider(["CoreMLExecutionProvider", cpu])
    assert chosen.name == cpu
    assert "CoreML would run parts" in chosen.reason
    assert choose_provider(["DmlExecutionProvider", cpu]).device == "dml"
    assert choose_provider(["DmlExecutionProvider", cpu], cpu_only=True).name == cpu
    assert choose_provider(["XnnpackExecutionProvider", cpu], wanted="xnnpack").name == "XnnpackExecutionProvider"
    with pytest.raises(LoadError, match="has CPU"):
        choose_provider([cpu], wanted="cuda")
