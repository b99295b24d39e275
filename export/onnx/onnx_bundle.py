"""What an app's build needs beside an ONNX model: its operators, a form for reduced builds, and hosts to start from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm.export import manifest
from edgellm.export.manifest import ManifestError
from edgellm.memory.onnx_graph import OnnxGraph, read_graph

OPERATORS = "required_operators.config"
HOSTS = ("host.py", "host.mjs")
MAX_ORT_BYTES = 2**31 - 1  # the format's own limit: weights are inside


def furnish(folder: Path, entries: Sequence[dict[str, Any]], *, ort: bool) -> list[dict[str, Any]]:
    """Complete a bundle that holds the files of `entries`; the entries of all that is then in it.

    Args:
        ort: replace each graph and its data by one file in onnxruntime's own format.

    Raises:
        ManifestError: a model too large for that format, or onnxruntime is missing or refuses it.
    """
    graphs = {entry["path"]: read_graph(folder / entry["path"]) for entry in entries if entry["path"].endswith(".onnx")}
    (folder / OPERATORS).write_text(required_operators(graphs.values()), encoding="utf-8")
    kept = list(entries)
    if ort:
        for name, graph in graphs.items():
            data = {f"{Path(name).parent.as_posix()}/{location}" for location in graph.data_files()}
            made = (folder / name).with_suffix(".ort")
            _to_ort(graph, made)
            first = next(entry for entry in kept if entry["path"] == name)
            entry = {**first, **manifest.file_entry(made), "path": Path(name).with_suffix(".ort").as_posix()}
            kept = [other for other in kept if other["path"] != name and other["path"] not in data] + [entry]
            for path in {name, *data}:
                (folder / path).unlink()
    for host in HOSTS:
        shutil.copyfile(Path(__file__).with_name("hosts") / host, folder / host)
    extra = [manifest.file_entry(folder / OPERATORS, role="operators")]
    return kept + extra + [manifest.file_entry(folder / host, role="host") for host in HOSTS]


def required_operators(graphs: Any) -> str:
    """The operators of graphs as onnxruntime's build script reads them: `domain;version;Operator,Operator`."""
    wanted: dict[tuple[str, int], set[str]] = {}
    for graph in graphs:
        for node in graph.nodes:
            key = (node.domain or "ai.onnx", graph.opsets.get(node.domain, 1))
            wanted.setdefault(key, set()).add(node.op)
    lines = [f"{domain};{version};{','.join(sorted(ops))}" for (domain, version), ops in sorted(wanted.items())]
    return "\n".join(["# for onnxruntime's build.py --include_ops_by_config", *lines]) + "\n"


def _to_ort(graph: OnnxGraph, path: Path) -> None:
    if graph.weight_bytes > MAX_ORT_BYTES:
        raise ManifestError(f"{graph.path} has more than 2 GiB of weights, which the ORT format cannot hold: use ONNX")
    try:
        import onnxruntime
    except ImportError as error:
        raise ManifestError("--ort needs onnxruntime: pip install 'edgellm[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As it is: what one machine's optimiser makes of a graph need not run on another, and the list of operators holds.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base below it
        raise ManifestError(f"{graph.path} cannot be converted: {str(error).splitlines()[0]}") from error
