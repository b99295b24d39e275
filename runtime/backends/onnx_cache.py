"""Keys and values of an ONNX decoder: in one buffer a tensor, or copied from pass to pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

from edgellm.memory.onnx_graph import KvPair

NUMPY_TYPES = {"float32": np.float32, "float16": np.float16}


class SharedCache:
    """One buffer a tensor, of the context's length, bound once as input and as output."""

    def __init__(self, kv: Sequence[KvPair], device: str, binding: Any, capacity: int) -> None:
        self._values: list[Any] = []
        for pair in kv:
            for past, present in zip(pair.past, pair.present, strict=True):
                shape = [1, pair.n_heads, capacity, pair.head_dim]
                # Filled, so that the memory is had now or not at all.
                zeros = np.full(shape, 0, NUMPY_TYPES[pair.type])
                value = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, device, 0)
                binding.bind_ortvalue_input(past, value)
                binding.bind_ortvalue_output(present, value)
                self._values.append((zeros, value))

    def bind(self, n_held: int) -> None:
        pass

    def ran(self, n_held: int) -> None:
        pass

    def reset(self) -> None:
        pass

    def free(self) -> None:
        self._values.clear()


class GrowingCache:
    """What the graph returned last; of it, the rows that are still held."""

    def __init__(self, kv: Sequence[KvPair], outputs: Sequence[str], binding: Any) -> None:
        self._binding, self._kv, self._outputs = binding, kv, outputs
        self._values: dict[str, Any] = {}
        self._n_values = 0  # tokens in them
        self.reset()

    def bind(self, n_held: int) -> None:
        for pair in self._kv:
            for past, present in zip(pair.past, pair.present, strict=True):
                value = self._values[past]
                if n_held < self._n_values:
                    rows = np.ascontiguousarray(value.numpy()[:, :, :n_held])
                    value = self._values[past] = onnxruntime.OrtValue.ortvalue_from_numpy(rows)
                self._binding.bind_ortvalue_input(past, value)
                self._binding.bind_output(present, "cpu")
        self._n_values = n_held

    def ran(self, n_held: int) -> None:
        returned = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        for pair in self._kv:
            for past, present in zip(pair.past, pair.present, strict=True):
                self._values[past] = returned[present]
        self._n_values = n_held

    def reset(self) -> None:
        for pair in self._kv:
            for past in pair.past:
                empty = np.zeros((1, pair.n_heads, 0, pair.head_dim), NUMPY_TYPES[pair.type])
                self._values[past] = onnxruntime.OrtValue.ortvalue_from_numpy(empty)
        self._n_values = 0

    def free(self) -> None:
        self._values.clear()


Cache: TypeAlias = "SharedCache | GrowingCache"
