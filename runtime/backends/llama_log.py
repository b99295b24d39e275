"""What llama.cpp says while it works, and its start; the one place that sets its callbacks."""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from typing import Any

from llama_cpp import llama_cpp as api

WARN, ERROR = 3, 4
_CONTINUES = 5  # the level of a text that goes on with the line before

OnText = Callable[[int, str], None]
"""Level and text as it comes, a line or a part of one."""

# Never let go: the engine holds a bare pointer, and another thread may be on its way there.
_callbacks: dict[OnText, Any] = {}


def listen(on_text: OnText) -> None:
    """Hear what the engine says from here on, whoever else in this process has listened since."""
    if on_text not in _callbacks:
        _callbacks[on_text] = _callback_of(on_text)
    api.llama_log_set(_callbacks[on_text], ctypes.c_void_p(0))


def _callback_of(on_text: OnText) -> Any:
    level = 0

    def hear(new: int, text: bytes, _user_data: Any) -> None:
        nonlocal level
        level = level if new == _CONTINUES else new
        on_text(level, text.decode("utf-8", "replace"))

    return api.llama_log_callback(hear)


def start(on_text: OnText) -> None:
    """Start the library, heard by `on_text`."""
    # A log line behind the end of Python must not call into it.
    atexit.register(api.llama_log_set, api.llama_log_callback(), ctypes.c_void_p(0))
    listen(on_text)
    api.llama_backend_init()
