"""The command. Command modules import nothing heavy at the top, so that `--help` stays instant."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from edgellm.cli import (
    _errors,
    _streams,
    adapt,
    bench,
    cache,
    chat,
    check,
    complete,
    devices,
    doctor,
    export,
    imatrix,
    models,
    pick,
    plan,
    pull,
    serve,
    worker,
)
from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._variables import Command, Group

app = typer.Typer(
    name="edgellm",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Speculative LLM inference on small devices: any drafter for any target, the output unchanged.",
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        out.text(f"edgellm {version('edgellm')}")
        raise typer.Exit


@app.callback()
def _global(
    quiet: opt.Quiet = False,
    verbose: Annotated[bool, opt.option("--verbose", "-v", help="Also the engine's own log.")] = False,
    version: Annotated[
        bool, opt.option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    out.begin(quiet=quiet, verbose=verbose)


app.command(cls=Command)(chat.chat)
app.command(cls=Command)(complete.complete)
app.command(cls=Command)(serve.serve)
app.command(cls=Command)(worker.worker)
app.command(cls=Command)(check.check)
app.command(cls=Command)(adapt.adapt)
app.command(cls=Command)(bench.bench)
app.command(cls=plan.PlanCommand)(plan.plan)
app.command(cls=Command)(devices.devices)
app.command(cls=Command)(doctor.doctor)
app.command(cls=Command)(pull.pull)
app.command(cls=Command)(pick.pick)
app.command("list", cls=Command)(models.list_)
app.command(cls=Command)(models.show)
app.command(cls=Command)(models.rm)
app.command(cls=Command)(export.export)
app.command(cls=Command)(export.verify)
app.command(cls=Command)(export.bundle)
app.command(cls=Command)(imatrix.imatrix)
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Run the command; known failures become one sentence on stderr and a documented exit code."""
    _streams.mend()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(_errors.INTERRUPTED)
    except BrokenPipeError:  # the reader left, as `| head` does
        _streams.give_up_output()
        sys.exit(_errors.FAILED)
    except _streams.OutputError as error:
        _streams.give_up_output()
        out.error(_errors.sentence(error))
        sys.exit(_errors.FAILED)
    except Exception as error:
        code = _errors.exit_code(error)
        if code is None or os.environ.get("EDGELLM_DEBUG"):
            raise
        out.error(_errors.sentence(error))
        sys.exit(code)


if __name__ == "__main__":
    main()
