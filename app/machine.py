"""What machine a figure was made on."""

from __future__ import annotations

from typing import Any


def machine(backend: Any = None) -> dict[str, Any]:
    """Facts that a figure must carry. Sizes in bytes."""
    import os
    import platform
    import sys
    from importlib.metadata import version

    import psutil

    from edgellm.memory.cpu import cpu_name
    from edgellm.runtime.backends.llama_process import kernels
    from edgellm.runtime.bringup.calibrate import peak_bytes

    return {
        "cpu": cpu_name(),
        "n_cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "n_threads": getattr(backend, "n_threads", None),
        "ram_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "edgellm": version("edgellm"),
        "llama_cpp_python": version("llama-cpp-python"),
        "onnxruntime": version("onnxruntime") if "onnxruntime" in sys.modules else None,
        "kernels": kernels().variant,
        "peak_bytes": peak_bytes(),
    }
