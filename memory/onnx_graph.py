"""Read an ONNX graph: inputs, outputs, operators and where each weight lies; never the weights.

The file comes from outside and is taken as hostile: lengths are checked before they are used, and no data file may lie
outside the graph's folder. Format: onnx.proto3 of ONNX, IR versions 3 to 13.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.memory.errors import EdgellmError
from edgellm.memory.protobuf import ProtobufError, fields, varint

# ONNX's `DataType` -> (name, bits an item)
TENSOR_TYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32), 13: ("uint64", 64),
    16: ("bfloat16", 16), 17: ("float8e4m3fn", 8), 19: ("float8e5m2", 8), 21: ("uint4", 4), 22: ("int4", 4),
}  # fmt: skip
MAX_NODES = 1_000_000
MAX_ITEMS = 2**40  # of one tensor


class OnnxError(EdgellmError, ValueError):
    """The file is no ONNX graph, a damaged one, or its data is; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """An input or output. A dimension is a number, a name for one that varies, or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    location: str | None  # a file beside the graph; None: inside it
    offset: int  # bytes into that file


@dataclass(frozen=True, slots=True)
class OnnxNode:
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int]  # whole numbers alone


@dataclass(frozen=True, slots=True)
class KvPair:
    """The cache of one layer: names of its two inputs and two outputs, and what an item of it is."""

    past: tuple[str, str]  # key, value
    present: tuple[str, str]
    n_heads: int
    head_dim: int
    type: str  # float32, float16 ...


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    path: Path
    file_bytes: int
    inputs: dict[str, OnnxValue]  # without initializers that only lend an input its default
    optional: frozenset[str]  # inputs with a default
    outputs: dict[str, OnnxValue]
    tensors: tuple[OnnxTensor, ...]
    nodes: tuple[OnnxNode, ...]
    opsets: dict[str, int]  # domain -> version; "" is ONNX's own
    metadata: dict[str, str]
    head_dim: int = 0  # of the cache, where its inputs leave it open

    @property
    def operators(self) -> dict[str, int]:
        """`domain.Operator` (ONNX's own without a domain) -> how many."""
        return dict(sorted(Counter(f"{node.domain}.{node.op}".lstrip(".") for node in self.nodes).items()))

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_vocab(self) -> int:
        """Width of the logits; 0 where the graph does not say."""
        logits = self.outputs.get("logits")
        width = logits.shape[-1] if logits is not None and logits.shape else None
        return width if isinstance(width, int) else 0

    @property
    def weight_bits(self) -> int:
        """Bits of most weights of its products."""
        bits: Counter[int] = Counter()
        by_name = {tensor.name: tensor for tensor in self.tensors}
        for node in self.nodes:
            if node.op == "MatMulNBits":
                size = node.attributes.get("K", 0) * node.attributes.get("N", 0)
                bits[node.attributes.get("bits", 4)] += size
            elif node.op in ("MatMul", "Gemm") and len(node.inputs) > 1 and node.inputs[1] in by_name:
                tensor = by_name[node.inputs[1]]
                size = max(math.prod(tensor.shape), 1)
                bits[8 * tensor.n_bytes // size] += size
        return max(bits, key=lambda n: bits[n], default=32)

    @property
    def quantisation(self) -> str:
        return {4: "int4", 8: "int8", 16: "fp16"}.get(self.weight_bits, "fp32")

    @property
    def shares_buffer(self) -> bool:
        """Whether every layer's new keys and values can be written behind the old ones, in place."""
        past = {name for pair in self.kv for name in pair.past}
        fused = {name for node in self.nodes if node.op == "GroupQueryAttention" for name in node.inputs}
        others = {name for node in self.nodes if node.op != "GroupQueryAttention" for name in node.inputs}
        return bool(past) and past <= fused and not past & others

    @property
    def kv(self) -> tuple[KvPair, ...]:
        """The cache, layer by layer, whatever order the inputs are listed in.

        Raises:
            OnnxError: a key without its value, an input without its output, or sizes that are not given.
        """
        numbers = sorted(
            int(middle)
            for name in self.inputs
            if name.startswith("past_key_values.") and (middle := name.split(".")[1]).isdigit() and name.endswith("key")
        )
        pairs = []
        for number in numbers:
            past = (f"past_key_values.{number}.key", f"past_key_values.{number}.value")
            present = (f"present.{number}.key", f"present.{number}.value")
            if past[1] not in self.inputs or not all(name in self.outputs for name in present):
                raise OnnxError(f"{self.path} has no complete cache for layer {number}: export the model again")
            shape = self.inputs[past[0]].shape
            dim = shape[3] if len(shape) == 4 and isinstance(shape[3], int) else self.head_dim
            if len(shape) != 4 or not isinstance(shape[1], int) or not dim:
                raise OnnxError(f"{self.path} does not say the sizes of its cache ({past[0]} is {shape}): export again")
            pairs.append(KvPair(past, present, shape[1], dim, self.inputs[past[0]].type))
        return tuple(pairs)

    def data_files(self) -> dict[str, int]:
        """Files beside the graph that hold weights -> bytes that they must have at least."""
        needed: dict[str, int] = {}
        for tensor in self.tensors:
            if tensor.location is not None:
                needed[tensor.location] = max(needed.get(tensor.location, 0), tensor.offset + tensor.n_bytes)
        return needed

    def check_data(self) -> None:
        """Whether all weights are there in their full length.

        Raises:
            OnnxError: a file that is missing, too short, or outside the graph's folder.
        """
        folder = self.path.parent
        for location, n_bytes in self.data_files().items():
            if Path(location).is_absolute() or ".." in Path(location).parts:
                raise OnnxError(f"{self.path} keeps weights outside its folder ({location!r}): do not use it")
            data = folder / location
            if not data.is_file():
                raise OnnxError(f"{data} is missing, which holds the weights of {self.path.name}: copy it again")
            if data.stat().st_size < n_bytes:
                raise OnnxError(
                    f"{data} has {data.stat().st_size:,} bytes where {self.path.name} needs {n_bytes:,}: "
                    "it is damaged, copy it again"
                )


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What a plan must know of a graph."""

    kv_row_bytes: int  # a token, all layers
    kv_type: str
    shares_buffer: bool
    picks_rows: bool  # logits are computed for the rows that are asked for
    n_nodes: int
    table_bytes: int  # weights that only lookups use: they stay in the mapped file
    folded_bytes: int  # weights used as they are and turned or reshaped: the latter is a copy
    scale_bytes: int  # scales of products of quantised weights
    largest_bytes: int  # of one weight of a product


def is_onnx(path: Path) -> bool:
    """Whether the path is meant for onnxruntime: a graph, or a folder with one."""
    return path.suffix == ".onnx" or path.is_dir()


def read_graph(path: Path, *, head_dim: int = 0) -> OnnxGraph:
    """The graph of a file.

    Args:
        head_dim: what the model's configuration says, for graphs that leave it open.

    Raises:
        OnnxError: no ONNX file, or a damaged one.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise OnnxError(f"{path} is empty: copy it again")
        # Not closed by hand: while an error is on its way, parts of the file are still looked at.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        return _model(data, path, head_dim)
    except (ProtobufError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise OnnxError(f"{path} is no ONNX graph, or a damaged one ({error}): copy it again") from None


def _model(data: memoryview, path: Path, head_dim: int) -> OnnxGraph:
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    graph: memoryview | None = None
    for number, value in fields(data):
        if number == 7:
            graph = value
        elif number == 8:
            entry = dict(fields(value))
            opsets[_text(entry.get(1, b""))] = int(entry.get(2, 0))
        elif number == 14:
            entry = dict(fields(value))
            metadata[_text(entry[1])] = _text(entry.get(2, b""))
    if graph is None:
        raise ProtobufError("it holds no graph")
    inputs: dict[str, OnnxValue] = {}
    outputs: dict[str, OnnxValue] = {}
    tensors: list[OnnxTensor] = []
    nodes: list[OnnxNode] = []
    for number, value in fields(graph):
        if number == 1:
            nodes.append(_node(value))
            if len(nodes) > MAX_NODES:
                raise ProtobufError(f"more than {MAX_NODES:,} operators")
        elif number == 5:
            tensors.append(_tensor(value))
        elif number == 11:
            found = _value(value)
            inputs[found.name] = found
        elif number == 12:
            found = _value(value)
            outputs[found.name] = found
    defaults = frozenset(tensor.name for tensor in tensors) & inputs.keys()
    return OnnxGraph(
        path, len(data), inputs, frozenset(defaults), outputs, tuple(tensors), tuple(nodes), opsets, metadata, head_dim
    )


def _node(data: memoryview) -> OnnxNode:
    inputs, outputs, op, domain = [], [], "", ""
    attributes: dict[str, int] = {}
    for number, value in fields(data):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            op = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            name, whole = "", None
            for key, item in fields(value):
                if key == 1:
                    name = _text(item)
                elif key == 3:
                    whole = _signed(item)
            if whole is not None:
                attributes[name] = whole
    return OnnxNode(op, "" if domain == "ai.onnx" else domain, tuple(inputs), tuple(outputs), attributes)


def _tensor(data: memoryview) -> OnnxTensor:
    dims: list[int] = []
    kind, name = 0, ""
    external: dict[str, str] = {}
    for number, value in fields(data):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_packed(value))
        elif number == 2:
            kind = int(value)
        elif number == 8:
            name = _text(value)
        elif number == 13:
            entry = dict(fields(value))
            external[_text(entry[1])] = _text(entry.get(2, b""))
    if kind not in TENSOR_TYPES and kind != 8:
        raise ProtobufError(f"{name} is of an unknown type {kind}")
    type_name, bits = TENSOR_TYPES.get(kind, ("string", 0))
    n_items = math.prod(dims)
    if n_items > MAX_ITEMS or any(extent < 0 for extent in dims):
        raise ProtobufError(f"{name} claims {n_items:,} items")
    offset, length = (external.get(key, "0") for key in ("offset", "length"))
    if not (offset.isdigit() and length.isdigit()):
        raise ProtobufError(f"{name} lies at {offset!r}")
    n_bytes = -(-n_items * bits // 8)
    return OnnxTensor(name, type_name, tuple(dims), max(n_bytes, int(length)), external.get("location"), int(offset))


def _value(data: memoryview) -> OnnxValue:
    name, kind = "", 0
    shape: list[int | str | None] = []
    for number, value in fields(data):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for what, tensor in fields(value):
                if what == 1:
                    for part, item in fields(tensor):
                        if part == 1:
                            kind = int(item)
                        elif part == 2:
                            shape = [_dimension(dim) for key, dim in fields(item) if key == 1]
    return OnnxValue(name, TENSOR_TYPES.get(kind, ("other", 0))[0], tuple(shape))


def _dimension(data: memoryview) -> int | str | None:
    for number, value in fields(data):
        return _signed(value) if number == 1 else _text(value)
    return None


def _packed(data: memoryview) -> Iterator[int]:
    offset = 0
    while offset < len(data):
        value, offset = varint(data, offset)
        yield value


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(data: Any) -> str:
    return bytes(data).decode("utf-8")
