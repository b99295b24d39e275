"""What llama.cpp's registry says of devices, with registries of machines that are not here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from edgellm.memory.placement import Accelerator
from edgellm.runtime.backends import llama_devices
from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.backends.vulkan_driver import VulkanDevice

CPU, GPU, INTEGRATED, ACCEL = range(4)  # of ggml_backend_dev_type
GIB = 1024**3
Registered = tuple[str, str, int, int, int]  # name, description, type, free, total
PROCESSOR: Registered = ("CPU", "a processor", CPU, 16 * GIB, 16 * GIB)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`registry(device, ...)` is what ggml has registered from then on."""

    def of(*devices: Registered, vulkan: dict[str, VulkanDevice] | None = None) -> None:
        def memory(handle: int, free: Any, total: Any) -> None:
            free._obj.value, total._obj.value = devices[handle - 1][3:]

        functions = {
            "ggml_backend_dev_count": lambda: len(devices),
            "ggml_backend_dev_get": lambda index: index + 1,  # a handle is never NULL
            "ggml_backend_dev_type": lambda handle: devices[handle - 1][2],
            "ggml_backend_dev_name": lambda handle: devices[handle - 1][0].encode(),
            "ggml_backend_dev_description": lambda handle: devices[handle - 1][1].encode("latin-1"),
            "ggml_backend_dev_memory": memory,
        }
        monkeypatch.setattr(llama_devices, "ggml", lambda api, name, result, *arguments: functions[name])
        monkeypatch.setattr(llama_devices, "vulkan_devices", lambda: vulkan or {})

    return of


def found() -> list[Accelerator]:
    return llama_devices.accelerators(None)


def test_an_engine_for_the_processor_alone_has_no_accelerators(registry: Callable[..., None]) -> None:
    registry(PROCESSOR)
    assert found() == []
    registry(PROCESSOR, ("BLAS", "Accelerate", ACCEL, 0, 0))  # no memory of its own: layers do not lie there
    assert found() == []
    registry()
    assert found() == []


@pytest.mark.parametrize(
    ("device", "kind", "unified"),
    [
        (("Vulkan0", "NVIDIA GeForce RTX 3060", GPU, 11 * GIB, 12 * GIB), "gpu", False),
        (("Vulkan0", "AMD Radeon 780M Graphics (RADV PHOENIX)", INTEGRATED, 7 * GIB, 8 * GIB), "integrated", True),
        (("Vulkan0", "Intel(R) Arc(TM) 140V GPU (16GB)", INTEGRATED, 15 * GIB, 16 * GIB), "integrated", True),
        (("Vulkan0", "Mali-G715", INTEGRATED, 4 * GIB, 8 * GIB), "integrated", True),
        (("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", INTEGRATED, 2 * GIB, 2 * GIB), "software", True),
        (("Vulkan0", "SwiftShader Device", GPU, 2 * GIB, 2 * GIB), "software", True),
        (("Metal", "Apple M1", GPU, 5 * GIB, 5 * GIB), "integrated", True),
        (("MTL0", "Apple M3 Max", GPU, 27 * GIB, 27 * GIB), "integrated", True),
        (("GPUOpenCL", "QUALCOMM Adreno(TM) 750", GPU, 0, 0), "integrated", True),
        (("GPUOpenCL", "pocl-cpu", GPU, 0, 0), "software", True),
        (("CUDA0", "NVIDIA GeForce RTX 4060 Laptop GPU", GPU, 7 * GIB, 8 * GIB), "gpu", False),
        (("RPC0", "192.168.1.7:50052", GPU, 3 * GIB, 4 * GIB), "worker", False),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else None,
)
def test_a_device_is_told_by_name_kind_and_memory(
    device: Registered, kind: str, unified: bool, registry: Callable[..., None]
) -> None:
    registry(PROCESSOR, device)
    (only,) = found()
    assert (only.name, only.description, only.kind, only.unified) == (*device[:2], kind, unified)
    assert (only.free_bytes, only.total_bytes) == device[3:]
    assert only.usable_bytes >= 0


def test_a_name_in_no_encoding_is_shown_all_the_same(registry: Callable[..., None]) -> None:
    registry(("Vulkan0", "Radeon\xae", GPU, GIB, GIB))
    assert found()[0].description == "Radeon\ufffd"


def test_a_vulkan_device_is_known_with_its_driver_and_its_limit(registry: Callable[..., None]) -> None:
    card = ("Vulkan0", "a card", GPU, GIB, GIB)
    registry(card, vulkan={"a card": VulkanDevice("404138.9127c100", 2**32 - 1)})
    assert (found()[0].driver, found()[0].largest_bytes) == ("404138.9127c100", 2**32 - 1)
    assert llama_devices.key(None, [("Vulkan0", 3)]) == "3 on a card 404138.9127c100"
    registry(card, vulkan={"another": VulkanDevice("1.2", 7)})
    assert (found()[0].driver, found()[0].largest_bytes) == ("", 0)


def parameters() -> SimpleNamespace:
    return SimpleNamespace(devices=None, tensor_split=None, n_gpu_layers=-1)


def named(placed: Sequence[tuple[str, int]]) -> tuple[list[int], list[float], int]:
    params = parameters()
    devices, shares, _ = llama_devices.place(None, params, placed)
    assert params.devices == ctypes.addressof(devices)
    assert devices[len(placed)] is None  # the list ends with NULL
    return devices[: len(placed)], shares[: len(placed)], params.n_gpu_layers


def test_layers_are_handed_to_the_devices_that_are_named_and_to_no_others(registry: Callable[..., None]) -> None:
    registry(PROCESSOR, ("Vulkan0", "a", GPU, GIB, GIB), ("Vulkan1", "b", GPU, GIB, GIB))
    assert named([("Vulkan1", 5)]) == ([3], [5.0], 5)
    assert named([("Vulkan1", 5), ("Vulkan0", 2)]) == ([3, 2], [5.0, 2.0], 7)
    assert named([]) == ([], [], 0)  # an empty list, not none: none would be all that there are


def test_a_device_that_has_gone_is_told_before_anything_is_loaded(registry: Callable[..., None]) -> None:
    registry(PROCESSOR)
    with pytest.raises(LoadError, match=r"Vulkan0 is not here any more: `edgellm devices --here`"):
        llama_devices.place(None, parameters(), [("Vulkan0", 3)])
