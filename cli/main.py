"""The command. Command modules import nothing heavy at the top, so that `--help` stays instant."""

from __future__ import annotations

import os
import sys

import typer

from edgellm.cli import (
    _errors,
    _streams,
    bench,
    cache,
    chat,
    check,
    devices,
    doctor,
    export,
    imatrix,
    models,
    plan,
    pull,
)
from edgellm.cli._output import out

app = typer.Typer(
    name="edgellm",
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
    quiet: bool = typer.Option(False, "--quiet", "-q", envvar="EDGELLM_QUIET", help="Only data and errors."),
    verbose: bool = typer.Option(False, "--verbose", "-v", envvar="EDGELLM_VERBOSE", help="Also the engine's own log."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    out.begin(quiet=quiet, verbose=verbose)


app.command()(chat.chat)
app.command()(check.check)
app.command()(bench.bench)
app.command(cls=plan.PlanCommand)(plan.plan)
app.command()(devices.devices)
app.command()(doctor.doctor)
app.command()(pull.pull)
app.command("list")(models.list_)
app.command()(models.show)
app.command()(models.rm)
app.command()(export.export)
app.command()(export.verify)
app.command()(export.bundle)
app.command()(imatrix.imatrix)
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
