"""Adapters on the command line: `--lora FILE[:SCALE]`."""

from __future__ import annotations

import os

import typer

from edgellm.cli._texts import BadTexts, split_texts

VARIABLE = "EDGELLM_LORA"


def lora_option(value: list[str]) -> list[str]:
    """What was typed, else what the environment says: one adapter, or several in quotes."""
    try:
        return value or split_texts(os.environ.get(VARIABLE, ""))
    except BadTexts as error:
        raise typer.BadParameter(f"{VARIABLE}: {error}") from error
