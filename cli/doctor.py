"""`edgellm doctor`: what this machine is, which kernels it uses and why, and how fast it could be at best."""

from __future__ import annotations

from typing import Any

import typer

from edgellm.cli._output import out


def doctor(json_: bool = typer.Option(False, "--json", help="Facts as JSON: bytes and seconds.")) -> None:
    """Show the CPU, the kernels and why they were chosen, and the measured limits of this machine."""
    facts = _facts()
    if json_:
        out.json(facts)
        return
    roofline = facts["roofline"]
    rows = [
        ("CPU", facts["cpu"]),
        ("instruction sets", ", ".join(facts["features"]) or "none that the kernels know"),
        ("kernels", f"{facts['kernels']}: {facts['reason']}"),
        ("variants that run here", ", ".join(facts["variants"]) or "none"),
        ("weight types", ", ".join(facts["weight_types"])),
        ("threads", facts["n_threads"]),
    ]
    if roofline:
        rows += [
            ("memory bandwidth", f"{roofline['bytes_per_s'] / 1e9:.1f} GB/s"),
            ("integer peak", f"{roofline['macs_per_s'] / 1e9:.0f} G multiply-adds/s"),
            ("roofline", f"{roofline['macs_per_byte']:.1f} multiply-adds a byte"),
            ("", f"up to {roofline['n_tokens']:.0f} tokens of Q4_K for the price of reading the weights once"),
        ]
    out.table(["", ""], rows)


def _facts() -> dict[str, Any]:
    import psutil

    from edgellm.memory.cpu import cpu_name
    from edgellm.runtime.kernels import install
    from edgellm.runtime.kernels.load import features, variants, weight_types
    from edgellm.runtime.kernels.roofline import measure

    report = install()
    n_threads = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    fastest = report.variant if report.active else next(iter(variants()), "")
    roofline = measure(fastest, n_threads=n_threads)
    return {
        "cpu": cpu_name(),
        "features": features(),
        "kernels": report.variant,
        "reason": report.reason,
        "active": report.active,
        "variants": list(variants()),
        "weight_types": list(weight_types()),
        "n_threads": n_threads,
        "roofline": None
        if roofline is None
        else {
            "variant": roofline.variant,
            "bytes_per_s": roofline.bytes_per_s,
            "macs_per_s": roofline.macs_per_s,
            "macs_per_byte": roofline.balance,
            "n_tokens": roofline.balance * 148 / 256,  # bytes of 256 packed weights of Q4_K
        },
    }
