"""llama.cpp's RPC, where the library was built with it: devices of workers added to the engine's, and its server."""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgellm.runtime.backends import llama_devices
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.workers.link import Link, linked
from edgellm.runtime.workers.wire import PROTOCOL as PROTOCOL

BUILD = "CMAKE_ARGS='-DGGML_RPC=ON' pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python==0.3.36"


def missing(api: Any) -> str:
    """A sentence where this build has no RPC; "" where it has."""
    try:
        llama_devices.ggml(api, "ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    except AttributeError:
        return f"this llama.cpp was built without RPC, which workers need: {BUILD}"
    return ""


def engine_version(api: Any) -> str:
    """Version and commit of ggml, by which two ends know that they are of one build's protocol."""
    said = [llama_devices.ggml(api, f"ggml_{name}", ctypes.c_char_p)() for name in ("version", "commit")]
    return " ".join(part.decode("utf-8", "replace").removesuffix("-dirty") for part in said)


def own_version() -> str:
    try:
        return version("edgellm")
    except PackageNotFoundError:
        return "unknown"


def add_workers(api: Any, addresses: tuple[str, ...]) -> list[Link]:
    """Link to these workers and let the engine see their devices, under their addresses.

    Raises:
        LoadError: this build has no RPC, or it finds no device there.
        BadAddress, WorkerError: a worker is not there, or cannot be used.
    """
    if addresses and (why := missing(api)):
        raise LoadError(why)
    links = linked(addresses, engine_version(api) if addresses else "")
    add = llama_devices.ggml(api, "ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p) if links else None
    register = llama_devices.ggml(api, "ggml_backend_register", None, ctypes.c_void_p)
    get = llama_devices.ggml(api, "ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    name = llama_devices.ggml(api, "ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    for link in links:
        if add is None or link in llama_devices.workers.values():
            continue
        registry = add(link.endpoint.encode())
        if link.lost or not registry:
            raise LoadError(f"the worker {link.address} was lost: {link.lost or 'it has no device'}")
        register(registry)
        llama_devices.workers[name(get(registry, 0)).decode()] = link
    return links


def serve(api: Any, endpoint: str, n_threads: int, device: str) -> None:
    """Serve one device on the loopback until the process ends; returns where it cannot listen."""
    by_name = llama_devices.ggml(api, "ggml_backend_dev_by_name", ctypes.c_void_p, ctypes.c_char_p)
    start = llama_devices.ggml(
        api, "ggml_backend_rpc_start_server", None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_void_p),
    )  # fmt: skip
    devices = (ctypes.c_void_p * 1)(by_name(device.encode()))
    if not devices[0]:
        raise LoadError(f"llama.cpp has no device {device} here")
    start(endpoint.encode(), None, n_threads, 1, devices)
