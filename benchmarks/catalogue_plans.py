"""Plans made by name against plans of files: the catalogue's models, matrices quantised as llama.cpp would.

    python benchmarks/catalogue_plans.py [--mem 6GB]

A header with the true geometry is written for each, the types chosen by the installed engine itself, and planned as a
file is; models that are on this machine are planned from their own files as well. Linux.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from engine_types import engine_types, name_of

from edgellm.app.shapes import of_name
from edgellm.export.obtain import store
from edgellm.export.obtain.catalogue import ModelEntry, load_catalogue
from edgellm.memory.device import Device, sized_device
from edgellm.memory.gguf import read_header
from edgellm.memory.mixtures import Geometry
from edgellm.memory.plan_request import PlanRequest
from edgellm.memory.shape import ModelShape, from_header
from edgellm.memory.solve import solve
from edgellm.memory.units import parse_memory

NORMS = ("attn_norm", "ffn_norm")


def header_of(entry: ModelEntry, quantisation: str, *, tied: bool, path: Path) -> ModelShape:
    """A file of holes with the model's tensors, read back."""
    facts = entry.facts
    assert facts is not None
    geometry = Geometry(
        facts.architecture, facts.n_layers, facts.n_embd, facts.n_heads * facts.head_dim,
        facts.n_kv_heads * facts.head_dim, facts.n_ff, facts.n_vocab, tied=tied,
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, facts.architecture)
    writer.add_block_count(facts.n_layers)
    writer.add_context_length(facts.n_ctx_train)
    writer.add_embedding_length(facts.n_embd)
    writer.add_feed_forward_length(facts.n_ff)
    writer.add_head_count(facts.n_heads)
    writer.add_head_count_kv(facts.n_kv_heads)
    writer.add_key_length(facts.head_dim)
    writer.add_value_length(facts.head_dim)
    writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{quantisation}"]))
    if facts.window:
        writer.add_sliding_window(facts.window)
    if facts.n_merges:
        writer.add_token_merges([""] * facts.n_merges)
    for matrix, kind in engine_types(geometry, quantisation, facts.head_dim):
        raw = gguf.GGMLQuantizationType[kind]
        shape = gguf.quant_shape_to_byte_shape((matrix.n_out, matrix.n_in), raw)
        writer.add_tensor_info(name_of(matrix), shape, np.dtype(np.uint8), matrix.n_bytes(kind), raw)
    for layer in range(facts.n_layers):
        for norm in NORMS:
            size = 4 * facts.n_embd
            writer.add_tensor_info(f"blk.{layer}.{norm}.weight", (facts.n_embd,), np.dtype(np.float32), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return from_header(read_header(path, check_extent=False), entry.name)


def process_bytes(shape: ModelShape, place: Device) -> int:
    ask = PlanRequest(n_ctx=4096, kv="f16", n_draft=15, n_ubatch=128, loading="packed")
    return solve(shape, None, place, ask).plan.process_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mem", default="6GB")
    place = sized_device(parse_memory(parser.parse_args().mem))
    worst = 0.0
    print(f"{'model':34} {'by name MB':>11} {'header MB':>10} {'':>8}  {'file here MB':>12}")
    for entry in load_catalogue():
        if entry.facts is None:
            continue
        named = of_name(entry.name).shape
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            header = header_of(entry, named.quantisation, tied=named.tied is not None, path=path)
        by_name, by_header = process_bytes(named, place), process_bytes(header, place)
        difference = by_name / by_header - 1
        worst = max(worst, abs(difference))
        here = ""
        if entry.files and (model := store.locate(entry.name)):
            own = process_bytes(replace(from_header(read_header(model.path)), name=entry.name), place)
            worst = max(worst, abs(by_name / own - 1))
            here = f"{own / 1e6:12.1f} {by_name / own - 1:+.2%}"
        label = f"{entry.name}:{named.quantisation}"
        print(f"{label:34} {by_name / 1e6:11.1f} {by_header / 1e6:10.1f} {difference:+8.2%}  {here}")
    print(f"largest difference {worst:.2%}")


if __name__ == "__main__":
    main()
