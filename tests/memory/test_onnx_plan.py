"""Plans of ONNX models: exact where they can be; what is shared counts twice; the graph decides the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_onnx import HEAD_DIM, N_KV_HEADS, write_tiny_onnx

from edgellm.memory.context import ContextSettings
from edgellm.memory.onnx_graph import read_graph
from edgellm.memory.onnx_plan import GROWN_COPIES, SCALE_COPIES, facts_of, shape_of
from edgellm.memory.plan import Limit, PairSettings, plan
from edgellm.memory.shape import ModelShape, UnknownShape
from edgellm.memory.stored import plan_from_json

SETTINGS = ContextSettings(n_ctx=100, n_ubatch=32, n_outputs=5)


def tiny_onnx_shape(folder: Path, **shape: bool) -> ModelShape:
    write_tiny_onnx(folder, **shape)
    return shape_of(read_graph(folder / "model.onnx"), json.loads((folder / "config.json").read_text()), "tiny")


def planned(shape: ModelShape, settings: ContextSettings = SETTINGS) -> dict[str, int]:
    made = plan(shape, None, PairSettings(settings, 4), Limit("none", 0))
    assert plan_from_json(json.loads(json.dumps(made.to_json()))).total_bytes == made.total_bytes
    return {line.name: line.n_bytes for line in made.lines}


def test_a_cache_in_one_buffer_is_its_rows_and_one_for_a_padded_token(tmp_path: Path) -> None:
    row = 2 * 2 * N_KV_HEADS * HEAD_DIM * 4  # layers, keys and values, heads, float32
    assert planned(tiny_onnx_shape(tmp_path))["target cache"] == 101 * row


def test_a_cache_that_grows_is_there_several_times(tmp_path: Path) -> None:
    one, grown = (planned(tiny_onnx_shape(tmp_path / str(shared), shared=shared)) for shared in (True, False))
    assert grown["target cache"] == GROWN_COPIES * one["target cache"]


def test_a_cache_that_grows_is_read_in_small_pieces(tmp_path: Path) -> None:
    wide = replace(SETTINGS, n_ctx=256, n_ubatch=256)
    narrow = replace(wide, n_ubatch=64)
    grown = tiny_onnx_shape(tmp_path / "grown", shared=False)
    assert planned(grown, wide) == planned(grown, narrow)
    whole = tiny_onnx_shape(tmp_path / "whole")
    assert planned(whole, wide) != planned(whole, narrow)


def test_weights_are_those_of_the_files_without_a_table_that_stays_there(tmp_path: Path) -> None:
    shape = tiny_onnx_shape(tmp_path)
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("model.onnx*"))
    assert shape.onnx is not None
    assert 0.8 * on_disk < planned(shape)["target weights"] + shape.onnx.table_bytes < on_disk


def test_a_weight_of_a_lookup_and_a_product_is_counted_twice(tmp_path: Path) -> None:
    import onnx

    alone = tiny_onnx_shape(tmp_path)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    head = next(node for node in model.graph.node if node.output[0] == "logits")
    turned = onnx.helper.make_node("Transpose", ["embed"], ["turned"], perm=[1, 0])
    head.input[1] = "turned"
    model.graph.node.insert(0, turned)
    onnx.save_model(model, tmp_path / "model.onnx")
    graph = read_graph(tmp_path / "model.onnx")
    embedding = next(tensor for tensor in graph.tensors if tensor.name == "embed")
    assert alone.onnx is not None
    assert facts_of(graph).folded_bytes == alone.onnx.folded_bytes + embedding.n_bytes
    assert facts_of(graph).table_bytes == alone.onnx.table_bytes - embedding.n_bytes


def test_scales_of_quantised_products_are_packed_beside_those_of_the_file(tmp_path: Path) -> None:
    shape = tiny_onnx_shape(tmp_path, quantised=True)
    assert shape.onnx is not None
    assert 0 < shape.onnx.scale_bytes < shape.weight_bytes / 4
    without = replace(shape, onnx=replace(shape.onnx, scale_bytes=0))
    grown = planned(shape)["target weights"] - planned(without)["target weights"]
    assert grown == pytest.approx(SCALE_COPIES * shape.onnx.scale_bytes, abs=1)


def test_the_type_of_weights_is_read_from_the_products(tmp_path: Path) -> None:
    assert tiny_onnx_shape(tmp_path / "a").quantisation == "fp32"
    assert tiny_onnx_shape(tmp_path / "b", quantised=True).quantisation == "int4"


def test_a_configuration_without_widths_is_refused(tmp_path: Path) -> None:
    write_tiny_onnx(tmp_path)
    with pytest.raises(UnknownShape, match="hidden_size"):
        shape_of(read_graph(tmp_path / "model.onnx"), {}, "tiny")
