"""python installed.py [--without-kernels]: run by the Python of a fresh installation, outside the checkout.

Fails where the package has no kernels, or other bits come out than their definition gives; or, when told that it is
without kernels, where it has them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import edgellm
from edgellm.runtime.kernels import load

ROWS, K, BLOCK = 48, 96, 32


def product(variant: str) -> bytes:
    """y (3, rows) = x (3, k) W^T of a fixed q8_0 matrix, as bytes."""
    library = load.compiled()
    assert library is not None
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (ROWS, K // BLOCK, 2 + BLOCK), dtype=np.uint8)
    raw[:, :, :2] = np.array([0.01], np.float16).view(np.uint8)  # each block's scale
    x = rng.standard_normal((3, K)).astype(np.float32)
    number = load.weight_types().index("q8_0")
    packed = np.empty(library.edgellm_packed_bytes(number, ROWS, K), np.uint8)
    library.edgellm_pack(number, raw.ctypes.data, ROWS, K, packed.ctypes.data, 1)
    y = np.empty((3, ROWS), np.float32)
    args = (number, packed.ctypes.data, 1, ROWS, K, x.ctypes.data, 3, y.ctypes.data, 1, 1)
    assert library.edgellm_matmul(variant.encode(), *args) >= 0
    return y.tobytes()


def problem(without_kernels: bool) -> str | None:
    """What is wrong with the installation, in a sentence."""
    if without_kernels:
        return "there are kernels" if load.compiled() is not None else None
    if load.compiled() is None:
        return "the kernels are missing, or cannot be opened"
    if wrong := [variant for variant in load.variants() if product(variant) != product("generic")]:
        return f"other bits than the definition's: {', '.join(wrong)}"
    report = load.install()  # checks llama.cpp's structures, then computes inside it
    if len(load.variants()) > 1 and sys.platform != "win32" and not report.active:
        return f"llama.cpp does not take the kernels: {report.reason}"
    print(f"kernels: {', '.join(load.variants())}; under llama.cpp: {report.variant} ({report.reason})")
    return None


if __name__ == "__main__":
    print(f"edgellm of {Path(edgellm.__file__).parent if edgellm.__file__ else edgellm.__path__}")
    sys.exit(problem("--without-kernels" in sys.argv))
