"""What llama.cpp does not tell of a Vulkan device: its driver, on which bits and times depend, and a limit of it."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from contextlib import suppress
from dataclasses import dataclass

_INSTANCE_INFO = 1  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
_PROPERTIES_BYTES = 2048  # VkPhysicalDeviceProperties takes 824
_NAME, _STORAGE_RANGE = slice(20, 20 + 256), slice(324, 328)  # of it: deviceName, limits.maxStorageBufferRange


@dataclass(frozen=True, slots=True)
class VulkanDevice:
    driver: str  # its API's and its own version, as numbers in hexadecimal
    largest_bytes: int  # of a tensor that a program can address


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


@functools.cache
def vulkan_devices() -> dict[str, VulkanDevice]:
    """By their names; empty where Vulkan does not answer."""
    name = ctypes.util.find_library("vulkan") or "libvulkan.so.1"
    with suppress(OSError, AttributeError):
        return _asked(ctypes.CDLL(name))
    return {}


def _asked(vulkan: ctypes.CDLL) -> dict[str, VulkanDevice]:
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
            api, driver, largest = (
                int.from_bytes(raw.raw[part], "little") for part in (slice(0, 4), slice(4, 8), _STORAGE_RANGE)
            )
            text = raw.raw[_NAME].split(b"\0")[0].decode("utf-8", "replace")
            found[text] = VulkanDevice(f"{api:x}.{driver:x}", largest)
        return found
    finally:
        vulkan.vkDestroyInstance(instance, None)
