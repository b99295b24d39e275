"""Options of workers: those that lend, and those that are lent to."""

from __future__ import annotations

from typing import Annotated

from edgellm.cli import _options as opt


def _addresses(said: str) -> tuple[str, ...]:
    from edgellm.runtime.workers.sockets import BadAddress, address_of

    words = tuple(word.strip() for word in said.split(",") if word.strip())
    if not words:
        raise BadAddress("no worker is named: give HOST:PORT, several with commas between")
    for word in words:
        address_of(word)
    return words


Workers = Annotated[
    str | None,
    opt.option(
        "--workers",
        metavar="HOST:PORT,...",
        help="Put the layers that do not fit here, or as many as --gpu-layers says, on machines that run `edgellm "
        "worker`.",
        callback=opt.checked(_addresses),
        panel=opt.ENGINE,
    ),
]
Host = Annotated[str, opt.option("--host", metavar="ADDRESS", help="Address of this machine to listen on.")]
Port = Annotated[int, opt.option("--port", min=0, max=65535, metavar="N", help="0: any that is free.")]
Mem = Annotated[
    str | None,
    opt.option(
        "--mem",
        metavar="SIZE",
        help="Most memory of this program; what the machine has free if not given.",
        callback=opt.checked(opt.size),
    ),
]
Device = Annotated[
    str,
    opt.option(
        "--device",
        metavar="NAME",
        help="What computes: a name of `edgellm devices --here`, cpu, or auto: a GPU if any.",
    ),
]
