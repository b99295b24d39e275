"""How people name a model: a catalogue name, a repository on the Hub, or a path."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.memory.errors import USAGE, EdgellmError

_PREFIX = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/|hf://", re.IGNORECASE)
_REPO = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]*\w)?/[A-Za-z0-9]([\w.-]{,94}\w)?(?<!\.git)")
_PAGE = re.compile(r"([^/]+/[^/]+)/(?:blob|resolve)/main/([^/?]+\.gguf)(?:\?.*)?")  # a file's address on the Hub
_QUANT = re.compile(
    r"(?:^|[-._])("
    r"(?:UD-)?(?:IQ[1-4]_(?:XXS|XS|S|M|NL)|Q[1-8]_K(?:_(?:XXS|XS|S|M|L|XL))?|Q[2-8]_[01](?:_\d_\d)?)"
    r"|TQ[12]_0|MXFP4(?:_MOE)?|BF16|F16|FP16|F32|FP32)(?=[-._]|$)",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})$")
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)  # companions that lie beside models

# What is taken when nobody says which: what most people run, then what is closest to it.
PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q8_0")


class BadReference(EdgellmError, ValueError):
    """Text that names no model, or more than one; the message lists what it could mean."""

    exit_code = USAGE


@dataclass(frozen=True, slots=True)
class Reference:
    """Exactly one of `path`, `repo` and `name` is set."""

    text: str
    path: Path | None = None
    repo: str | None = None  # user/repo
    name: str | None = None
    quant: str | None = None  # as written; or a file name of the repository, ending in .gguf


def parse(text: str) -> Reference:
    """Read a reference: `name`, `name:QUANT`, `user/repo`, `user/repo:QUANT`, `hf.co/user/repo`, or a path.

    Raises:
        BadReference: none of these, or a path where there is no file.
    """
    text = text.strip()
    prefix = _PREFIX.match(text)
    rest = text[prefix.end() :].strip("/") if prefix else text
    if not prefix and (path := _path(text)):
        return Reference(text, path=path)
    page = _PAGE.fullmatch(rest) if prefix else None
    stem, quant = page.groups() if page else rest.partition(":")[::2]
    if _REPO.fullmatch(stem):
        return Reference(text, repo=stem, quant=quant or None)
    if prefix or "/" in stem or os.sep in stem or not stem:
        raise BadReference(f"{text!r} names no model: write a catalogue name, user/repo, or the path of a GGUF file")
    return Reference(text, name=stem, quant=quant or None)


def _path(text: str) -> Path | None:
    """The file, if the text is meant as one."""
    path = Path(text).expanduser()
    rooted = text.startswith(("/", "./", "../", "~")) or (os.sep in text and os.sep != "/") or path.is_absolute()
    is_bare_name = "/" not in text and os.sep not in text
    if path.is_file() and not (is_bare_name and path.suffix not in (".gguf", ".onnx")):
        return path
    if (path / "model.onnx").is_file():
        return path
    if path.is_dir() and (rooted or path.suffix == ".gguf"):
        raise BadReference(f"{text} is a folder: name a GGUF file in it, or one that holds model.onnx")
    if rooted or (path.suffix == ".gguf" and ":" not in text):
        raise BadReference(f"there is no file {text}")
    return None


def quant_of(filename: str) -> str | None:
    """`Qwen3-0.6B-q4_k_m.gguf` -> `Q4_K_M`; None where the name does not say. The last one counts."""
    found = _QUANT.findall(Path(filename).stem)
    return found[-1].upper().replace("FP", "F") if found else None


def parts_of(filename: str) -> int:
    """How many files make the model; `-00001-of-00001` is a whole one."""
    split = _SPLIT.search(Path(filename).stem)
    return int(split[2]) if split else 1


def is_model_file(filename: str) -> bool:
    """A GGUF at the top of its repository that holds a model's weights."""
    return "/" not in filename and filename.lower().endswith(".gguf") and not _NO_MODEL.search(filename)


def choose(filenames: Sequence[str], quant: str | None, *, where: str) -> str:
    """The one file that is meant.

    Args:
        filenames: the model files of one place.
        quant: a quantisation in any case, a file name, or None for the usual choice.
        where: the place, for messages.

    Raises:
        BadReference: none fits or several do; the message lists them.
    """
    if not filenames:
        raise BadReference(f"{where} holds no GGUF file: many models have one in a repository whose name ends in -GGUF")
    if quant and quant.lower().endswith(".gguf"):
        fitting = [name for name in filenames if name.casefold() == quant.casefold()]
    elif quant:
        fitting = [name for name in filenames if quant_of(name) == quant.upper()]
    else:
        usual = ([name for name in filenames if quant_of(name) == preferred] for preferred in PREFERRED)
        fitting = list(filenames) if len(filenames) == 1 else next(filter(None, usual), list(filenames))
    if not fitting:
        raise BadReference(f"{where} has no {quant}; it has {_listed(filenames)}")
    if (n_parts := parts_of(fitting[0])) > 1:
        whole = [name for name in filenames if parts_of(name) == 1]
        others = f"; in one file it has {_listed(whole)}" if whole else ""
        raise BadReference(f"{fitting[0]} of {where} is split into {n_parts} files, which are not supported{others}")
    if len(fitting) > 1:
        example = f"{where}:{fitting[0] if quant else quant_of(fitting[0]) or fitting[0]}"
        raise BadReference(f"{where} has several files that fit: {_listed(fitting)}; name one, as in {example}")
    return fitting[0]


def _listed(filenames: Sequence[str]) -> str:
    """Quantisations where they tell the files apart, names where they do not."""
    quants = [quant_of(name) for name in filenames]
    distinct = None not in quants and len(set(quants)) == len(quants)
    words = [str(quant) for quant in quants] if distinct else list(filenames)
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")
