"""`edgellm pull`: bring a model to this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from edgellm.cli import _options as opt
from edgellm.cli._completion import model_names
from edgellm.cli._output import out


def pull(
    reference: Annotated[
        str,
        typer.Argument(
            help="A catalogue name, user/repo[:QUANT], hf.co/user/repo[:QUANT], or a path.", autocompletion=model_names
        ),
    ],
    offline: opt.Offline = False,
    token: opt.Token = None,
    json_: opt.Json = False,
) -> None:
    """Bring a model to this machine and print where it lies.

    A download that was interrupted goes on where it stopped; each file is checked against its checksum.
    """
    from edgellm.app.inventory import installed_json
    from edgellm.cli._progress import DownloadBar
    from edgellm.export.obtain import store

    model = store.pull(reference, offline=offline, token=token, progress=DownloadBar())
    if json_:
        out.json(installed_json(model))
    else:
        out.text(str(model.path))
