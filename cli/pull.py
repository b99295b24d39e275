"""`edgellm pull`: bring a model to this machine."""

from __future__ import annotations

import typer

from edgellm.cli._completion import model_names
from edgellm.cli._output import out


def pull(
    reference: str = typer.Argument(
        help="A catalogue name, user/repo[:QUANT], hf.co/user/repo[:QUANT], or a path.", autocompletion=model_names
    ),
    offline: bool = typer.Option(False, "--offline", envvar="EDGELLM_OFFLINE", help="Ask no server: be here, or fail."),
    token: str | None = typer.Option(None, help="For gated repositories of the Hub.  [default: HF_TOKEN]"),
    json_: bool = typer.Option(False, "--json", help="Print one JSON object."),
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
