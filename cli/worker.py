"""`edgellm worker`: lend this machine's memory and cores to a chat on another."""

from __future__ import annotations

import ipaddress
import threading

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._worker_options import Device, Host, Mem, Port
from edgellm.memory.limits import WORKER_PORT

OPEN = (
    "whoever reaches {host}:{port} can use this machine's memory and cores, read and change what is computed, and by "
    "the faults of a server that trusts what it is sent perhaps more: there is no password and nothing is encrypted. "
    "Listen on 127.0.0.1 and let the other machine come through SSH: {tunnel}"
)
TUNNEL = "ssh -N -L {port}:127.0.0.1:{port} USER@THIS-MACHINE"


def worker(
    host: Host = "127.0.0.1",
    port: Port = WORKER_PORT,
    mem: Mem = None,
    threads: opt.Threads = None,
    device: Device = "auto",
) -> None:
    """Lend memory and cores: `edgellm chat MODEL --workers HOST:PORT` on another machine puts layers here."""
    from edgellm.app.lending import lend
    from edgellm.cli._terminal import interrupts
    from edgellm.memory.units import format_bytes

    if not _is_loopback(host):
        out.warning(OPEN.format(host=host, port=port or "PORT", tunnel=TUNNEL.format(port=port or "PORT")))
    with lend(host, port, mem=mem, n_threads=threads, device=device, say=out.note) as front:
        facts, stop = front.facts, threading.Event()
        how = f"kernels {facts.kernels}" if facts.kernels else "the engine's own kernels"
        out.note(f"lending {format_bytes(facts.total_bytes)} of {facts.device} ({how}) at {host}:{front.port}")
        if _is_loopback(host):
            out.note(f"another machine reaches it through SSH: {TUNNEL.format(port=front.port)}")
        with interrupts(stop):
            front.run(stop)
    raise typer.Exit


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
