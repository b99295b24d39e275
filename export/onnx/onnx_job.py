"""A job of an exporter's own environment: makes an ONNX graph of a checkpoint, or compares one with it.

Run as a script by that environment's Python, which has torch and transformers and not this package; so nothing of the
package is imported here, and all of it is one file, which starts itself anew for what may end its process. A job is one
JSON object on stdin; the answer is the last line of stdout, in JSON. What the
exporters print goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

MODEL, DATA = "model.onnx", "model.onnx.data"
BLOCK, ACCURACY_LEVEL = 32, 4  # weights that share a scale; 4: products in 8-bit integers
N_WINDOW = 256  # tokens that are compared at once

# What may lie between the last matrix and the logits: scaling, capping, conversion.
_ELEMENTWISE = {"Cast", "Mul", "Div", "Tanh", "Identity", "Add"}
_PRODUCTS = {"MatMul", "MatMulNBits", "Gemm", "FusedMatMul", "MatMulInteger"}

# The best trade of size and top-1 agreement among the builder's recipes (docs/onnx.md has the table).
_BUILDER: dict[str, tuple[str, str, list[str]]] = {
    "int4": (
        "int4",
        "cpu",
        ["algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8",
         f"accuracy_level={ACCURACY_LEVEL}", f"block_size={BLOCK}"],
    ),
    "int8": ("int8", "cpu", [f"accuracy_level={ACCURACY_LEVEL}", f"block_size={BLOCK}"]),
    "fp16": ("fp16", "cuda", []),  # the builder has half precision for GPUs alone; the graph runs on CPUs too
    "fp32": ("fp32", "cpu", []),
}  # fmt: skip


def export(job: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint as `model.onnx` and its data in a folder."""
    source, folder, quant = Path(job["source"]), Path(job["output"]), job["quant"]
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch)
        (_by_builder if job["exporter"] == "builder" else _by_optimum)(source, made, quant, scratch)
        _finish(made, folder, _head_dim(source), embedding_too=quant in ("int4", "int8"))
        if (made / "genai_config.json").exists():
            shutil.move(made / "genai_config.json", folder)
    return {"versions": _versions(job["exporter"])}


def _by_builder(source: Path, made: Path, quant: str, scratch: str) -> None:
    precision, provider, extra = _BUILDER[quant]
    if not _takes_k_quant(source):
        extra = [option.replace("algo_config=k_quant", "algo_config=rtn") for option in extra]
    if _is_tied(source):
        extra = [*extra, "shared_embeddings=true"]
    arguments = ["-i", str(source), "-o", str(made), "-p", precision, "-e", provider, "-c", f"{scratch}/cache"]
    if extra:
        arguments += ["--extra_options", *extra, "hf_token=false", "hf_remote=false"]
    _run("onnxruntime_genai.models.builder", arguments, Path(scratch, "reason"))


def _by_optimum(source: Path, made: Path, quant: str, scratch: str) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        model_name_or_path=str(source),
        output=made,
        task="text-generation-with-past",
        no_post_process=True,  # it would tie the head in a way that quantising then passes over
        do_validation=False,
        trust_remote_code=False,
        local_files_only=True,
    )
    if quant == "fp32":
        return
    import onnx

    model = onnx.load(made / MODEL)
    if quant == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=False, disable_shape_infer=True)
    else:
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
        from onnxruntime.quantization.quant_utils import QuantFormat

        config = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK,
            is_symmetric=True,
            accuracy_level=ACCURACY_LEVEL,
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=("MatMul", "Gather") if quant == "int4" else ("MatMul",),
            bits=4 if quant == "int4" else 8,
        )
        quantizer = MatMulNBitsQuantizer(model, algo_config=config)
        quantizer.process()
        model = quantizer.model.model
    for old in made.glob("*.onnx*"):
        old.unlink()
    onnx.save_model(model, made / MODEL, save_as_external_data=True, location=DATA, size_threshold=1024)


def _finish(made: Path, folder: Path, head_dim: int, *, embedding_too: bool) -> None:
    """The graph with an input that says from which token on logits are wanted, and all weights in one file beside it.

    The input has a default (0: all), so programs that do not know it run the graph as ever.
    """
    import onnx

    one_file = {path.name for path in made.glob("*") if path.is_file() and ".onnx" in path.name} == {MODEL, DATA}
    model = onnx.load(made / MODEL, load_external_data=not one_file)
    if embedding_too and any(_is_plain_embedding(model, node) for node in model.graph.node):
        if one_file:
            onnx.load_external_data_for_model(model, str(made))
            one_file = False
        for node in list(model.graph.node):
            if _is_plain_embedding(model, node):
                _quantise_embedding(model, node)
    rows = _slice_rows(model)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[3].dim_value = head_dim  # the builder leaves it open
    for node in model.graph.node:
        node.doc_string = ""
    del model.graph.metadata_props[:], model.graph.value_info[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = "edgellm.rows", rows
    if one_file:
        onnx.save_model(model, folder / MODEL)
        shutil.move(made / DATA, folder / DATA)
    else:
        onnx.save_model(model, folder / MODEL, save_as_external_data=True, location=DATA, size_threshold=1024)


def _is_plain_embedding(model: Any, node: Any) -> bool:
    """A lookup in float32 rows that no product shares: the one weight that both exporters leave alone."""
    if node.op_type != "Gather":
        return False
    users = sum(node.input[0] in other.input for other in model.graph.node)
    table = next((tensor for tensor in model.graph.initializer if tensor.name == node.input[0]), None)
    return (
        table is not None
        and users == 1
        and table.data_type == 1
        and len(table.dims) == 2
        and table.dims[1] % BLOCK == 0
    )


def _quantise_embedding(model: Any, node: Any) -> None:
    """8 bits a weight, one scale a block, rounded to the nearest."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    table = next(tensor for tensor in graph.initializer if tensor.name == node.input[0])
    values = numpy_helper.to_array(table)
    blocks = values.reshape(len(values), -1, BLOCK)
    scales = np.abs(blocks).max(-1) / 127
    steps = np.rint(blocks / np.where(scales == 0, 1, scales)[..., None])
    names = [f"{table.name}_Q8", f"{table.name}_scales"]
    arrays = [(steps + 128).astype(np.uint8).reshape(values.shape), scales.astype(np.float32)]
    graph.initializer.remove(table)
    graph.initializer.extend(numpy_helper.from_array(*pair) for pair in zip(arrays, names, strict=True))
    looked_up = helper.make_node(
        "GatherBlockQuantized", [names[0], node.input[1], names[1]], list(node.output), name=node.name,
        domain="com.microsoft", bits=8, block_size=BLOCK, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    graph.node.insert(list(graph.node).index(node), looked_up)
    graph.node.remove(node)


def _slice_rows(model: Any) -> str:
    """Cut the hidden states to the wanted rows before the widest product; how it was done, for the record."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    initializers = {tensor.name for tensor in graph.initializer}
    node = producer["logits"]
    while node.op_type in _ELEMENTWISE:
        grown = [name for name in node.input if name in producer and not _is_constant(producer, initializers, name)]
        if len(grown) != 1:
            return "all"
        node = producer[grown[0]]
    if node.op_type not in _PRODUCTS:
        return "all"
    hidden, sliced = node.input[0], "edgellm/hidden_rows"
    constants = {"edgellm/end": np.iinfo(np.int64).max, "edgellm/axis": 1, "logits_start": 0}
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    graph.input.append(helper.make_tensor_value_info("logits_start", TensorProto.INT64, [1]))
    cut = helper.make_node(
        "Slice", [hidden, "logits_start", "edgellm/end", "edgellm/axis"], [sliced], name="edgellm/rows"
    )
    graph.node.insert(list(graph.node).index(node), cut)
    node.input[0] = sliced
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].Clear()
            output.type.tensor_type.shape.dim[1].dim_param = "n_rows"
    model.ir_version = max(model.ir_version, 4)  # from here on an input's default may be overridden
    return "logits_start"


def _is_constant(producer: dict[str, Any], initializers: set[str], name: str) -> bool:
    node = producer.get(name)
    return name in initializers or (node is not None and node.op_type == "Constant")


def verify(job: dict[str, Any]) -> dict[str, Any]:
    """Top-1 agreement and perplexities of a graph and of its checkpoint, over the same windows of a text."""
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["n_threads"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["n_threads"]
    session = onnxruntime.InferenceSession(
        str(Path(job["output"]) / MODEL), options, providers=["CPUExecutionProvider"]
    )
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype=torch.float32, local_files_only=True).eval()
    n_same = n_all = n_scored = 0
    worst = 0.0
    surprise = {"checkpoint": 0.0, "exported": 0.0}
    tokens, first = _tokens(job)
    for begin in range(0, len(tokens), N_WINDOW):
        window = [*first, *tokens[begin : begin + N_WINDOW]]
        with torch.inference_mode():
            expected = model(torch.tensor([window])).logits[0].numpy()
        found = _rows(session, window).astype(np.float32)
        n_same += int((expected.argmax(-1) == found.argmax(-1)).sum())
        n_all += len(window)
        spread = np.linalg.norm(expected, axis=1)
        worst = max(worst, float((np.linalg.norm(found - expected, axis=1) / spread).max()))
        half = len(window) // 2
        for name, rows in (("checkpoint", expected), ("exported", found)):
            part = rows[half:-1].astype(np.float64)
            part -= part.max(-1, keepdims=True)
            chosen = part[np.arange(len(part)), window[half + 1 :]]
            surprise[name] += float((np.log(np.exp(part).sum(-1)) - chosen).sum())
        n_scored += len(window) - half - 1
    return {
        "n_tokens": n_all,
        "top1": round(n_same / n_all, 5),
        "max_relative_error": round(worst, 7),
        "perplexity": {name: round(float(np.exp(total / n_scored)), 4) for name, total in surprise.items()},
    }


def _tokens(job: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The text in the model's tokens, and what its tokenizer puts before every text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job["source"]) / "tokenizer.json"))
    tokens = tokenizer.encode(job["text"], add_special_tokens=False).ids[: job["n_tokens"]]
    return tokens, tokenizer.encode("", add_special_tokens=True).ids[:1]


def _rows(session: Any, window: list[int]) -> Any:
    """Logits of every token, nothing cached before them."""
    import numpy as np

    n = len(window)
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
    feed: dict[str, Any] = {}
    for entry in session.get_inputs():
        if entry.name == "input_ids":
            feed[entry.name] = np.array([window], np.int64)
        elif entry.name == "attention_mask":
            feed[entry.name] = np.ones((1, n), np.int64)
        elif entry.name == "position_ids":
            feed[entry.name] = np.arange(n, dtype=np.int64)[None]
        elif entry.name.startswith("past_key_values."):
            heads, dim = entry.shape[1], entry.shape[3]
            feed[entry.name] = np.zeros((1, heads, 0, dim), types[entry.type])
    return session.run(["logits"], feed)[0][0]


def _is_tied(source: Path) -> bool:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("tie_word_embeddings", str(config.get("model_type", "")).startswith("gemma")))


def _takes_k_quant(source: Path) -> bool:
    """The builder's k-quant packs two blocks' zero points in a byte, and fails on an odd number of blocks in a row."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    heads = _head_dim(source) * int(config["num_attention_heads"])
    return all(int(width) % (2 * BLOCK) == 0 for width in (config["hidden_size"], config["intermediate_size"], heads))


def _head_dim(source: Path) -> int:
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _versions(exporter: str) -> dict[str, str]:
    from importlib.metadata import version

    own = ["onnxruntime-genai"] if exporter == "builder" else ["optimum", "optimum-onnx"]
    return {name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime", *own)}


def _run(module: str, arguments: list[str], reason: Path) -> None:
    """A module as a program of its own. Why it failed it leaves in a file: what it prints may come in any order."""
    command = [sys.executable, "-I", __file__, str(reason), module, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, stderr=2, check=False)
    if reason.exists():
        raise ExporterFailed(reason.read_text(encoding="utf-8"))
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        short = "; most often for want of memory" if name == "SIGKILL" else ""
        raise ExporterFailed(f"the exporter was ended by {name}{short}")
    if done.returncode:
        raise ExporterFailed(f"the exporter ended with code {done.returncode} and gave no reason")


class ExporterFailed(Exception):
    """A program that failed; the message is a sentence already."""


def _guarded(reason: Path, module: str, arguments: list[str]) -> int:
    """That program's side: run the module, and leave the exception that ended it."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            return 0
        reason.write_text(_sentence(error), encoding="utf-8")
        traceback.print_exc()
        return 1
    return 0


def _sentence(error: BaseException) -> str:
    """An exception in its own words: some mean nothing without their type (`KeyError: 'rope_type'`)."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):  # what it gave up for, where it says so
        before = error.__context__
        return _sentence(before) if before else f"it ended itself with code {error.code} and gave no reason"
    words = " ".join(str(error).split())[:2000]
    if isinstance(error, (ExporterFailed, SystemExit)):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def main() -> int:
    if len(sys.argv) > 1:
        return _guarded(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    job = json.loads(sys.stdin.readline())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            answer = {"export": export, "verify": verify}[job["job"]](job)
    except BaseException as error:  # an exporter can raise anything, and exit; the parent makes a sentence of it
        answer = {"error": _sentence(error)}
        traceback.print_exc()
    print(json.dumps(answer), flush=True)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
