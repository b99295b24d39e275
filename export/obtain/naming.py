"""How people name a model: a catalogue name, a repository on the Hub, or a path."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.memory.split import first_of, part_name

_PREFIX = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/|hf://", re.IGNORECASE)
_REPO = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]*\w)?/[A-Za-z0-9]([\w.-]{,94}\w)?(?<!\.git)")
_PAGE = re.compile(
    r"([^/]+/[^/]+)/(?:blob|resolve)/main/((?:[^/?]+/)?[^/?]+\.gguf)(?:\?.*)?"
)  # a file's address on the Hub
_QUANT = re.compile(
    r"(?:^|[-._])("
    r"(?:UD-)?(?:IQ[1-4]_(?:XXS|XS|S|M|NL)|Q[1-8]_K(?:_(?:XXS|XS|S|M|L|XL))?|Q[2-8]_[01](?:_\d_\d)?)"
    r"|TQ[12]_0|MXFP4(?:_MOE)?|BF16|F16|FP16|F32|FP32)(?=[-._]|$)",
    re.IGNORECASE,
)
_FOLDER = re.compile(r"[A-Za-z0-9][\w.+-]*")  # in which repositories keep the parts of a model
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
    """Read a reference: `name`, `name:QUANT`, `user/repo`, `user/repo:QUANT`, `hf.co/user/repo`, or a path: of
    a file, of any part of a model in several, or of a folder that holds one model.

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
        return first_of(path)
    if (path / "model.onnx").is_file():
        return path
    if path.is_dir() and (rooted or path.suffix == ".gguf"):
        return _only_model(path, text)
    if rooted or (path.suffix == ".gguf" and ":" not in text):
        raise BadReference(f"there is no file {text}")
    return None


def quant_of(filename: str) -> str | None:
    """`Qwen3-0.6B-q4_k_m.gguf` -> `Q4_K_M`; None where the name does not say. The last one counts."""
    found = _QUANT.findall(Path(filename).stem)
    return found[-1].upper().replace("FP", "F") if found else None


def _only_model(folder: Path, text: str) -> Path:
    """The first file of the one model that a folder holds."""
    try:
        found = models_in([path.name for path in folder.iterdir() if path.is_file() and is_model_file(path.name)])
    except OSError as error:
        raise BadReference(f"{text} cannot be read: {error.strerror}") from error
    if not found:
        raise BadReference(f"{text} is a folder: name a GGUF file in it, or one that holds model.onnx")
    if len(found) > 1:
        raise BadReference(f"{text} is a folder with several models: name one of {', '.join(sorted(found)[:12])}")
    ((first, files),) = found.items()
    return folder / (first if first in files else files[0])


def models_in(filenames: Sequence[str]) -> dict[str, list[str]]:
    """The models that files make: the name of a model's first file, and those of its files that are listed."""
    found: dict[str, list[str]] = {}
    for name in filenames:
        part = part_name(name)
        found.setdefault(part.sibling(1) if part else name, []).append(name)
    return found


def files_of(filename: str) -> list[str]:
    """The files of the model whose first file is named; `-00001-of-00001` is a whole one."""
    part = part_name(filename)
    return part.siblings() if part else [filename]


def is_model_file(filename: str) -> bool:
    """A GGUF at the top of its repository that holds a model's weights, or a part of one, which may lie in a folder."""
    folder, slash, name = filename.rpartition("/")
    is_there = not slash or (_FOLDER.fullmatch(folder) is not None and part_name(name) is not None)
    return is_there and name.lower().endswith(".gguf") and not _NO_MODEL.search(name)


def choose(filenames: Sequence[str], quant: str | None, *, where: str, whole: bool = True) -> str:
    """The one model that is meant, by the name of its first file.

    Args:
        filenames: the model files of one place.
        quant: a quantisation in any case, a file name, or None for the usual choice.
        where: the place, for messages.
        whole: all parts of it must be there.

    Raises:
        BadReference: none fits or several do; the message lists them.
    """
    if not filenames:
        raise BadReference(f"{where} holds no GGUF file: many models have one in a repository whose name ends in -GGUF")
    models = models_in(filenames)
    if quant and quant.lower().endswith(".gguf"):
        fitting = [first for first, files in models.items() if any(_is_called(name, quant) for name in files)]
    elif quant:
        fitting = [first for first in models if quant_of(first) == quant.upper()]
    else:
        usual = ([first for first in models if quant_of(first) == preferred] for preferred in PREFERRED)
        fitting = list(models) if len(models) == 1 else next(filter(None, usual), list(models))
    if not fitting:
        raise BadReference(f"{where} has no {quant}; it has {_listed(list(models))}")
    in_one = [first for first in fitting if part_name(first) is None]
    if len(in_one) == 1:  # the same once more in parts
        fitting = in_one
    if len(fitting) > 1:
        example = f"{where}:{fitting[0] if quant else quant_of(fitting[0]) or fitting[0]}"
        raise BadReference(f"{where} has several files that fit: {_listed(fitting)}; name one, as in {example}")
    lacking = [name for name in files_of(fitting[0]) if name not in filenames]
    if whole and lacking:
        raise BadReference(f"{where} lacks {', '.join(lacking[:3])}, without which {fitting[0]} is no whole model")
    return fitting[0]


def _is_called(filename: str, name: str) -> bool:
    """By the whole of its path in the repository, or by its last piece where not both say the folder."""
    ours, theirs = filename.casefold(), name.casefold()
    is_bare = not ("/" in ours and "/" in theirs)
    return ours == theirs or (is_bare and ours.rpartition("/")[2] == theirs.rpartition("/")[2])


def _listed(filenames: Sequence[str]) -> str:
    """Quantisations where they tell the files apart, names where they do not."""
    quants = [quant_of(name) for name in filenames]
    distinct = None not in quants and len(set(quants)) == len(quants)
    words = [str(quant) for quant in quants] if distinct else list(filenames)
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")
