"""`edgellm devices`: what plans can be made for, this machine first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from edgellm.cli import _options as opt
from edgellm.cli._output import out


def devices(
    probe: Annotated[bool, opt.option("--probe", help="Also ask llama.cpp which GPUs it can use here.")] = False,
    sources: Annotated[bool, opt.option("--sources", help="Say where each figure is from.")] = False,
    json_: opt.Json = False,
) -> None:
    """List the devices that `plan --device` knows: memory, what a program may take of it, bandwidth."""
    from edgellm.memory.device import known_devices, this_machine
    from edgellm.memory.units import format_bytes

    listed = [this_machine(), *known_devices()]
    found = []
    if probe:
        from edgellm.runtime.bringup.probe import accelerators

        found = accelerators()
    if json_:
        rows = [asdict(device) for device in listed]
        return out.json([*rows, *({"kind": "gpu", **asdict(gpu)} for gpu in found)])
    columns = ["name", "what", "memory ", "for a program ", "bandwidth "] + (["source"] if sources else [])
    lines: list[tuple[object, ...]] = []
    for device in listed:
        line: tuple[object, ...] = (
            "here" if device.kind == "machine" else device.name,
            device.description,
            format_bytes(device.total_bytes, decimal=device.decimal),
            format_bytes(device.usable_bytes, decimal=device.decimal),
            f"{device.bandwidth_bytes_s / 1e9:.0f} GB/s",
        )
        lines.append((*line, device.source) if sources else line)
    for gpu in found:
        line = (gpu.name, gpu.description, format_bytes(gpu.total_bytes), format_bytes(gpu.free_bytes), "?")
        lines.append((*line, "asked of llama.cpp") if sources else line)
    out.table(columns, lines)
    if probe and not found:
        out.note("llama.cpp sees no GPU here")
