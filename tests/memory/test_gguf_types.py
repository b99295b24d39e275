"""The tables of types are those of the installed engine."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import sys
from pathlib import Path

import llama_cpp.llama_cpp as lib
from raw_gguf import LLAMA, llama_tensors, write_raw

from edgellm.memory.gguf import FILE_TYPES, TENSOR_TYPES

OPEN = """
import ctypes, sys
import llama_cpp.llama_cpp as lib
class Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]
read = lib._lib.gguf_init_from_file
read.restype, read.argtypes = ctypes.c_void_p, [ctypes.c_char_p, Params]
read(sys.argv[1].encode(), Params(True, None))
"""


def function(name: str, result: type) -> ctypes._CFuncPtr:
    found = getattr(lib._lib, name)
    found.restype, found.argtypes = result, [ctypes.c_int]
    return found  # type: ignore[no-any-return]


def engine_count(path: Path) -> int:
    """GGML_TYPE_COUNT, which the engine says where a tensor's type is beyond it."""
    data = write_raw(path, LLAMA, llama_tensors(1)[:1], holes=False).read_bytes()
    at = data.index(b"token_embd.weight") + 17 + 4 + 2 * 8
    path.write_bytes(data[:at] + struct.pack("<I", 9999) + data[at + 4 :])
    done = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True)
    found = re.search(r"should be in \[0, (\d+)\)", done.stderr)
    assert found, done.stderr
    return int(found.group(1))


def test_every_type_has_the_engines_name_and_blocks(tmp_path: Path) -> None:
    name, block = function("ggml_type_name", ctypes.c_char_p), function("ggml_blck_size", ctypes.c_int64)
    width = function("ggml_type_size", ctypes.c_size_t)
    there = [index for index in range(engine_count(tmp_path / "x.gguf")) if block(index) > 0]  # others were given up
    engine = {index: (name(index).decode().upper(), block(index), width(index)) for index in there}
    assert {index: (name.upper(), *sizes) for index, (name, *sizes) in TENSOR_TYPES.items()} == engine


def test_every_kind_of_file_that_the_engine_names_is_known() -> None:
    named = function("llama_ftype_name", ctypes.c_char_p)
    assert set(FILE_TYPES) == {index for index in range(256) if b"unknown" not in named(index)}
