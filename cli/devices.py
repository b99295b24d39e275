"""`edgellm devices`: what plans can be made for, this machine first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from edgellm.cli import _options as opt
from edgellm.cli._output import out

_KINDS = {
    "gpu": "memory of its own",
    "integrated": "the machine's memory",
    "software": "played by the processor",
    "worker": "another machine",
}


def devices(
    here: Annotated[bool, opt.option("--here", help="Those of this machine alone: what llama.cpp can use.")] = False,
    sources: Annotated[bool, opt.option("--sources", help="Say where each figure is from.")] = False,
    json_: opt.Json = False,
) -> None:
    """List the devices that `plan --device` knows: memory, what a program may take of it, bandwidth."""
    from edgellm.memory.device import known_devices, this_machine
    from edgellm.memory.units import format_bytes

    listed = [this_machine(), *(() if here else known_devices())]
    found = []
    if here:
        from edgellm.runtime.bringup.probe import accelerators

        found = accelerators()
    if json_:
        rows = [asdict(device) for device in listed]
        return out.json([*rows, *({**asdict(each), "unified": each.unified} for each in found)])
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
    for each in found:
        what = f"{each.description}, {_KINDS[each.kind]}"
        line = (each.name, what, format_bytes(each.total_bytes), format_bytes(each.usable_bytes), "?")
        lines.append((*line, "asked of llama.cpp") if sources else line)
    out.table(columns, lines)
    if here and not found:
        out.note("llama.cpp sees no GPU here (docs/gpu.md says how it is built for one)")
