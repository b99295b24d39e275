"""Freed memory goes back to the system, so that what a plan counts as free is so."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_MMAP_THRESHOLD = -3  # of malloc.h


def return_large_blocks(least_bytes: int = 2**20) -> None:
    """Have glibc give blocks from this size on back when they are freed, where it would keep some for later ones."""
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, least_bytes)


def give_back() -> None:
    """Free what only circles of objects hold, and pages that glibc would keep: 150 MiB after a small model."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not of every C library
        if trim is not None:
            trim(0)
