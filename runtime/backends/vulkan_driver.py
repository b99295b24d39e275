"""Which driver a Vulkan device has: llama.cpp does not tell, and bits and times depend on it."""

from __future__ import annotations

import ctypes
import ctypes.util
from contextlib import suppress

_INSTANCE_INFO = 1  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
_PROPERTIES_BYTES = 2048  # VkPhysicalDeviceProperties takes 824


class _InstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo; nothing of it is asked for."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("n_layers", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("n_extensions", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    )


def drivers() -> dict[str, str]:
    """Device's name -> its API and driver versions, as numbers in hexadecimal; empty where Vulkan does not answer."""
    name = ctypes.util.find_library("vulkan") or "libvulkan.so.1"
    with suppress(OSError, AttributeError):
        return _asked(ctypes.CDLL(name))
    return {}


def _asked(vulkan: ctypes.CDLL) -> dict[str, str]:
    instance = ctypes.c_void_p()
    info = _InstanceInfo(type=_INSTANCE_INFO)
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)):
        return {}
    try:
        n = ctypes.c_uint32()
        if vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(n), None):
            return {}
        devices = (ctypes.c_void_p * n.value)()
        if vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(n), devices) < 0:
            return {}
        found = {}
        for device in devices[: n.value]:
            raw = ctypes.create_string_buffer(_PROPERTIES_BYTES)
            vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), raw)
            api, driver = (int.from_bytes(raw.raw[i : i + 4], "little") for i in (0, 4))
            # Behind five numbers of four bytes: up to 256 of a name.
            text = raw.raw[20 : 20 + 256].split(b"\0")[0].decode("utf-8", "replace")
            found[text] = f"{api:x}.{driver:x}"
        return found
    finally:
        vulkan.vkDestroyInstance(instance, None)
