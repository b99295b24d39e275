"""Who converts a checkpoint in `edgellm export`: judged by its configuration, announced, and only then fetched."""

from __future__ import annotations

from pathlib import Path

from edgellm.app.export_options import BadOption
from edgellm.export.convert import conversion
from edgellm.export.convert import llama_cpp_converter as pinned
from edgellm.export.convert.conversion import CHOICES, Choice
from edgellm.export.convert.script import Converter, packages_in, refuse_tokenizer_code
from edgellm.export.environments import DISK_BYTES, environment, is_installed, packages_of
from edgellm.export.obtain.download import Progress
from edgellm.memory.files import sha256_of


class Converters:
    """`own`, `llama.cpp`, or the path of a script, as --converter has it; `converter` is there once one is needed."""

    def __init__(self, told: str | None, python: Path | None, progress: Progress) -> None:
        """Args:
        python: that has what the script imports. None: an environment of its own.
        progress: is told what converts, and what is fetched for it.

        Raises:
            BadOption: `told` is none of these.
        """
        self.choice: Choice | None = next((choice for choice in CHOICES if choice == told), None)
        self.converter: Converter | None = None
        self._python, self._progress = python, progress
        self._script = _script_of(Path(told).expanduser()) if told and self.choice is None else None

    @property
    def option(self) -> str | None:
        """As the manifest has it, to repeat the export by."""
        return sha256_of(self._script) if self._script else self.choice

    def check(self, folder: Path, *, has_tokenizer: bool) -> None:
        """Look at a folder before its weights are there; what converts them is fetched when nothing speaks against it.

        Raises:
            UnsupportedModel, TokenizerError: nobody can convert it.
            ExporterError, SourceError: the tools cannot be had.
        """
        if self._script is not None:  # it decides for itself what it knows
            if has_tokenizer and self.converter is None:
                self._take(self._script, folder.name)
            return
        found = conversion.choose(folder, self.choice, has_tokenizer=has_tokenizer)
        if found.by == "llama.cpp" and has_tokenizer:
            if self.converter is None:
                self._fetch(found.family)
            if self.converter is not None:
                refuse_tokenizer_code(self.converter, folder)

    def _take(self, script: Path, name: str) -> None:
        self._announce(name, str(script), 0 if self._python else _environment_bytes())
        self.converter = self._made(script, is_pinned=False)

    def _fetch(self, family: str) -> None:
        n_bytes = 0 if pinned.is_there() else pinned.N_BYTES
        n_bytes += 0 if self._python else _environment_bytes()
        self._announce(family, "llama.cpp's own script", n_bytes)
        folder = pinned.converter_source(self._progress)
        self.converter = self._made(folder / pinned.CONVERTER, is_pinned=True)

    def _announce(self, family: str, by: str, n_bytes: int) -> None:
        once = f" ({n_bytes / 1e9:.1f} GB of tools, once)" if n_bytes else ""
        self._progress.note(f"{family} is converted by {by}{once}")

    def _made(self, script: Path, *, is_pinned: bool) -> Converter:
        if self._python is not None:
            return Converter(script, self._python, is_pinned, packages_in(self._python))
        return Converter(script, environment("llama_cpp", ask=lambda _: True), is_pinned, packages_of("llama_cpp"))


def _script_of(path: Path) -> Path:
    script = path / "convert_hf_to_gguf.py" if path.is_dir() else path
    if not script.is_file():
        raise BadOption(f"--converter {path}: take own, llama.cpp, or the path of a script that is there")
    return script


def _environment_bytes() -> int:
    return 0 if is_installed("llama_cpp") else DISK_BYTES["llama_cpp"]
