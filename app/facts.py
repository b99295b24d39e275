"""What a bug report needs to know of a machine, gathered without ever failing: what is wrong becomes a sentence."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

LITTLE_DISK_BYTES = 2**30  # a small model does not fit any more
LITTLE_MEMORY_BYTES = 2**30


class Facts:
    """`values` for machines, `problems` a sentence each with its remedy."""

    def __init__(self, *, measured: bool) -> None:
        """`measured`: also time the memory and the multipliers, which takes a second."""
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        parts: list[Callable[[], None]] = [
            self._versions, self._cpu, self._library, self._memory, self._folders, self._models,
        ]  # fmt: skip
        for part in [*parts, self._roofline] if measured else parts:
            try:
                part()
            except Exception as error:  # a report on what is broken must come about whatever is broken
                self.problems.append(f"{part.__name__[1:]}: {type(error).__name__}: {error}")

    def _versions(self) -> None:
        from importlib import metadata

        names = ("llama-cpp-python", "numpy", "onnxruntime", "tokenizers", "huggingface-hub", "typer")
        found: dict[str, str | None] = {}
        for name in ("edgellm", *names):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = None
        self.values |= {
            "version": found.pop("edgellm"),
            "python": platform.python_version(),
            "system": platform.platform(),
            "packages": found,
        }
        for wanted in metadata.requires("edgellm") or []:
            name, exact, version = wanted.partition(";")[0].partition("==")
            if exact and found.get(name.strip()) not in (None, version.strip()):
                self.problems.append(
                    f"{name} {found[name.strip()]} is installed and edgellm was made for {version}: "
                    f"pip install '{name}=={version}'"
                )

    def _cpu(self) -> None:
        import psutil

        from edgellm.memory.cpu import cpu_name, usable_cores
        from edgellm.runtime.kernels.load import features, variants, weight_types

        self.values |= {
            "cpu": cpu_name(),
            "features": list(features()),
            "n_threads": psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
            "n_cores_usable": usable_cores(),
            "variants": list(variants()),
            "weight_types": list(weight_types()),
        }

    def _library(self) -> None:
        from edgellm.memory.children import ChildFailed
        from edgellm.runtime.bringup.library import examine

        try:
            found = examine()
        except ChildFailed as error:
            self.values |= {"kernels": "stock", "reason": str(error), "active": False, "library": None}
            self.problems.append(
                f"llama.cpp cannot be used: {error.ended or error}; build it for this machine: "
                "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
            )
            return
        kernels, buffers = found.pop("kernels"), found.pop("extra_buffers")
        self.values |= {
            "kernels": kernels["variant"],
            "reason": kernels["reason"],
            "active": kernels["active"],
            "extra_buffers": buffers,
            "library": found,
        }
        self.problems += found["structures"]
        if not kernels["active"] and not os.environ.get("EDGELLM_KERNELS"):
            self.problems.append(f"llama.cpp's own kernels are used, which are slower here: {kernels['reason']}")
        if not buffers["usable"] and not os.environ.get("EDGELLM_EXTRA_BUFFERS"):
            self.problems.append(
                f"llama.cpp's own {' and '.join(buffers['buffers']) or 'extra'} buffers do not work here and are left "
                f"out, which costs speed with weights that our kernels do not take ({buffers['reason']})"
            )

    def _memory(self) -> None:
        import psutil

        from edgellm.memory.device import address_limit, cgroup_limits, this_machine

        machine, limits = this_machine(), cgroup_limits()
        if (own := address_limit()) is not None:
            limits.append(own)
        self.values["memory"] = {
            "total_bytes": int(psutil.virtual_memory().total),
            "usable_bytes": machine.usable_bytes,
            "limits": [
                {"where": limit.where, "limit_bytes": limit.limit_bytes, "used_bytes": limit.used_bytes}
                for limit in limits
            ],
        }
        if machine.usable_bytes < LITTLE_MEMORY_BYTES:
            from edgellm.memory.units import format_bytes

            self.problems.append(
                f"{format_bytes(machine.usable_bytes)} of memory are free for a program: end other programs, or see "
                "`edgellm plan --budget SIZE` for what fits"
            )

    def _folders(self) -> None:
        from huggingface_hub import constants

        from edgellm.memory.folders import home

        places = {"home": home(), "hub": Path(constants.HF_HUB_CACHE)}
        self.values["folders"] = {name: self._folder(name, path) for name, path in places.items()}

    def _folder(self, name: str, path: Path) -> dict[str, Any]:
        from edgellm.memory.units import format_bytes

        there = path
        while not there.exists() and there != there.parent:  # it is made when it is needed
            there = there.parent
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        free = shutil.disk_usage(there).free
        variable = {"home": "EDGELLM_HOME", "hub": "HF_HOME"}[name]
        if not writable:
            self.problems.append(f"{path} cannot be written to: change its rights, or set {variable} to another folder")
        elif free < LITTLE_DISK_BYTES:
            self.problems.append(
                f"{path} has {format_bytes(free)} left on its disk: free some, or set {variable} to another disk"
            )
        return {"path": str(path), "exists": path.is_dir(), "writable": writable, "free_bytes": free}

    def _models(self) -> None:
        from edgellm.export.obtain import store

        self.values["models"] = [
            {"reference": model.reference, "n_bytes": model.n_bytes, "path": str(model.path)}
            for model in store.installed()
        ]
        self.problems += store.lost()

    def _roofline(self) -> None:
        from edgellm.runtime.kernels.roofline import measure

        self.values["roofline"] = None
        variants = self.values["variants"]
        fastest = self.values["kernels"] if self.values["active"] else next(iter(variants), "")
        if (found := measure(fastest, n_threads=self.values["n_threads"])) is not None:
            self.values["roofline"] = {
                "variant": found.variant,
                "bytes_per_s": found.bytes_per_s,
                "macs_per_s": found.macs_per_s,
                "macs_per_byte": found.balance,
                "n_tokens": found.balance * 148 / 256,  # bytes of 256 packed weights of Q4_K
            }
