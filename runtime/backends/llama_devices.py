"""The devices that this build of llama.cpp can compute on, by its own names."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from edgellm.memory.placement import Accelerator, AcceleratorKind
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.vulkan_driver import vulkan_devices
from edgellm.runtime.kernels.load import compiled
from edgellm.runtime.workers.link import Link

_GPU, _INTEGRATED = 1, 2  # of ggml_backend_dev_type
workers: dict[str, Link] = {}  # by the engine's names of their devices; elsewhere they go by their addresses
_UNKNOWN_BATCH = -1001  # of `edgellm_pass`: nothing was run
_STAY = b"^(output|token_embd)"  # names of tensors before the first layer and behind the last
_SHARING = ("Metal", "MTL", "GPUOpenCL")  # backends whose devices share the machine's memory and say that they are GPUs
_PLAYED = ("llvmpipe", "lavapipe", "swiftshader", "pocl")  # drivers that compute on the processor


def accelerators(api: Any) -> list[Accelerator]:
    """The devices beside the processor, in the engine's order; none where it was built for the processor alone."""
    describe = ggml(api, "ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    size = ctypes.POINTER(ctypes.c_size_t)
    memory = ggml(api, "ggml_backend_dev_memory", None, ctypes.c_void_p, size, size)
    found = []
    for name, device, kind in _devices(api):
        if kind not in (_GPU, _INTEGRATED):
            continue
        if (link := _link_of(name)) is not None:
            found.append(link.survey.accelerator)
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        description = describe(device).decode("utf-8", "replace")
        more = vulkan_devices().get(description) if name.startswith("Vulkan") else None
        known = (more.driver, more.largest_bytes) if more is not None else ()
        found.append(Accelerator(name, description, _kind(name, description, kind), free.value, total.value, *known))
    return found


def key(api: Any, placed: Sequence[tuple[str, int]]) -> str:
    """All that bits and times of layers so placed depend on, beside the engine's release: devices and drivers."""
    here = {each.name: each for each in accelerators(api)}
    parts = []
    for name, n in placed:
        if (each := here.get(name)) is not None:
            way = f" {each.remote.round_trip_s:.0e} s away" if each.remote else ""
            parts.append(f"{n} on {each.description} {each.driver}{way}")
    return "; ".join(parts)


def guarded_pass(api: Any, context: Any, batch: Any) -> tuple[int, str]:
    """A pass to its end: the engine's status, and what a driver said that failed in the middle, which would else end
    the process ("" if none did)."""
    status, what = _UNKNOWN_BATCH, ctypes.create_string_buffer(256)
    if (library := compiled()) is not None:
        addresses = (ctypes.cast(function, ctypes.c_void_p) for function in (api.llama_decode, api.llama_synchronize))
        at, size = ctypes.addressof(batch), ctypes.sizeof(batch)
        status = int(library.edgellm_pass(*addresses, context, at, size, what, len(what)))
    if status == _UNKNOWN_BATCH:
        status = int(api.llama_decode(context, batch))
        api.llama_synchronize(context)
    return status, what.value.decode("utf-8", "replace").strip()


def links_of(placed: Sequence[tuple[str, int]]) -> list[Link]:
    """The workers among the devices that layers are placed on."""
    return [link for link in map(_link_of, dict(placed)) if link is not None]


def place(api: Any, params: Any, placed: Sequence[tuple[str, int]], *, head_stays: bool = False) -> list[Any]:
    """Let `llama_model_params` put the last layers of a model on these devices, and all of it on the processor if none.

    Not to name devices would be to take all that there are, and to hand them the wide products of layers that stay.

    Args:
        head_stays: the output head, which is a layer to the engine, is the processor's all the same: rows of the width
            of a layer come back over a network, and no logits.

    Returns:
        what the parameters point to, to be kept until the model is loaded.

    Raises:
        LoadError: one of them is not here.
    """
    by_name = {name: device for name, device, _ in _devices(api)}
    if missing := [name for name, _ in placed if name not in by_name]:
        raise LoadError(f"{missing[0]} is not here any more: `edgellm devices --here` lists what is")
    devices = (ctypes.c_void_p * (len(placed) + 1))(*(by_name[name] for name, _ in placed), None)
    shares = (ctypes.c_float * 128)(*(n for _, n in placed))
    overrides = (_Override * 2)()
    if placed and head_stays:
        shares[len(placed) - 1] += 1
        overrides[0] = _Override(_STAY, ggml(api, "ggml_backend_cpu_buffer_type", ctypes.c_void_p)())
        params.tensor_buft_overrides = ctypes.addressof(overrides)
    params.devices = ctypes.addressof(devices)
    params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    params.n_gpu_layers = sum(n for _, n in placed) + bool(placed and head_stays)
    return [devices, shares, overrides]


class _Override(ctypes.Structure):
    """llama_model_tensor_buft_override; an empty one ends a list."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _link_of(address: str) -> Link | None:
    return next((link for link in reversed(workers.values()) if link.address == address), None)


def _kind(name: str, description: str, kind: int) -> AcceleratorKind:
    if any(word in description.casefold() for word in _PLAYED):
        return "software"
    if name.startswith("RPC"):
        return "worker"
    return "integrated" if kind == _INTEGRATED or name.startswith(_SHARING) else "gpu"


def _devices(api: Any) -> list[tuple[str, int, int]]:
    """(name, handle, kind) of each device that is registered."""
    count = ggml(api, "ggml_backend_dev_count", ctypes.c_size_t)
    get = ggml(api, "ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    kind = ggml(api, "ggml_backend_dev_type", ctypes.c_int, ctypes.c_void_p)
    name = ggml(api, "ggml_backend_dev_name", ctypes.c_char_p, ctypes.c_void_p)
    found = [(name(device).decode("utf-8", "replace"), device, kind(device)) for device in map(get, range(count()))]
    latest = {link.address: named for named, link in workers.items()}  # one that came back is another device
    return [
        (workers[named].address if named in workers else named, *rest)
        for named, *rest in found
        if named not in workers or latest[workers[named].address] == named
    ]


def ggml(api: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function of ggml, whose libraries libllama has loaded."""
    function = ctypes.CDLL(api._lib._name)[name]  # one of its own, so that its types are set here alone
    function.restype, function.argtypes = result, list(arguments)
    return function
