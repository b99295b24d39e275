"""Who converts a checkpoint in `edgellm export`: judged by its configuration, announced, and only then fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.export.conversion import Choice
    from edgellm.export.script import Converter


class Converters:
    """`own`, `llama.cpp`, or the path of a script, as --converter has it; `converter` is there once one is needed."""

    def __init__(self, told: str | None, python: Path | None) -> None:
        from edgellm.export.conversion import CHOICES

        self.choice: Choice | None = next((choice for choice in CHOICES if choice == told), None)
        self.converter: Converter | None = None
        self._python = python
        if told and self.choice is None:
            self._take_script(Path(told).expanduser())

    @property
    def option(self) -> str | None:
        """As the manifest has it, to repeat the export by."""
        from edgellm.export.source import sha256_of

        if self.converter is not None and not self.converter.is_pinned:
            return sha256_of(self.converter.script)
        return self.choice

    def check(self, folder: Path, *, has_tokenizer: bool) -> None:
        """Look at a folder before its weights are there; what converts them is fetched when nothing speaks against it.

        Raises:
            UnsupportedModel, TokenizerError: nobody can convert it.
            ExporterError, SourceError: the tools cannot be had.
        """
        from edgellm.export import conversion

        if self.converter is not None and not self.converter.is_pinned:
            return  # another program's script decides for itself what it knows
        found = conversion.choose(folder, self.choice, has_tokenizer=has_tokenizer)
        if found.by == "llama.cpp" and has_tokenizer and self.converter is None:
            self._fetch(found.family)

    def _take_script(self, path: Path) -> None:
        from edgellm.export.script import Converter

        script = path / "convert_hf_to_gguf.py" if path.is_dir() else path
        if not script.is_file():
            raise typer.BadParameter(f"--converter {path}: take own, llama.cpp, or the path of a script that is there")
        if self._python is None:
            self._announce("The model", n_bytes=_environment_bytes())
        self.converter = Converter(script, self._interpreter(), is_pinned=False)

    def _fetch(self, family: str) -> None:
        from edgellm.cli._progress import DownloadBar
        from edgellm.export import llama_cpp_converter as pinned
        from edgellm.export.script import Converter

        n_bytes = 0 if pinned.is_there() else pinned.N_BYTES
        self._announce(family, n_bytes + (0 if self._python else _environment_bytes()))
        folder = pinned.converter_source(DownloadBar())
        self.converter = Converter(folder / pinned.CONVERTER, self._interpreter(), is_pinned=True)

    def _announce(self, family: str, n_bytes: int) -> None:
        once = f" ({n_bytes / 1e9:.1f} GB of tools, once)" if n_bytes else ""
        out.note(f"{family} is converted by llama.cpp's own script{once}")

    def _interpreter(self) -> Path:
        from edgellm.export.environments import environment

        return self._python or environment("llama_cpp", ask=lambda _: True)


def _environment_bytes() -> int:
    from edgellm.export.environments import DISK_BYTES, is_installed

    return 0 if is_installed("llama_cpp") else DISK_BYTES["llama_cpp"]
