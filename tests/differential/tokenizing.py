"""A tokenizer on one side, llama.cpp with our export of it on the other: what became of each text."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tokenizers
from comparison import TransformersChild
from texts import corpus
from vocabularies import write_vocabulary_gguf

from edgellm.cli._errors import exit_code, sentence
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.gguf_writer import string, write_gguf
from edgellm.export.read.tokenizer import read_vocabulary
from edgellm.export.read.tokenizer_facts import parts


@dataclass(slots=True)
class Cuts:
    """What became of one tokenizer's texts."""

    name: str
    outcome: str = ""  # "right", "refused", "WRONG", or "no truth": its maker failed
    why: str = ""
    n_sequences: int = 0
    n_told: int = 0  # cut otherwise, as a remark says
    n_wrong: int = 0
    examples: list[tuple[str, list[int], list[int]]] = field(default_factory=list)  # text, ours, theirs
    remarks: tuple[str, ...] = ()


def compare_tokenizer(name: str, texts: Sequence[str], folder: Path, child: TransformersChild) -> Cuts:
    """Make the tokenizer `name`, export it, cut `texts` both ways."""
    cuts = Cuts(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if name.startswith("model"):  # sentencepiece sees no control tokens in a text
        texts = [text for text in texts if not any(token in text for token in ("<s>", "</s>", "<unk>", "<ctl>"))]
    (folder / "texts.json").write_text(json.dumps([list(texts), corpus()]))
    answer = child.ask(job="tokenizer", name=name, folder=str(folder), texts=str(folder / "texts.json"))
    if "refused" in answer:
        cuts.outcome, cuts.why = "no truth", answer["refused"]
        return cuts
    try:
        cuts.remarks = read_vocabulary(folder).remarks
        write_vocabulary_gguf(folder, folder / "model.gguf")
    except Exception as error:
        told = sentence(error).replace(str(folder), "MODEL") if exit_code(error) else ""
        cuts.outcome, cuts.why = ("refused", told) if told else ("WRONG", f"traceback: {error!r}")
        return cuts
    theirs = json.loads((folder / "ids.json").read_text())
    path = folder / "model.gguf"
    _count(cuts, texts, engine_jobs.tokenise(path, texts), theirs["raw"], folder)
    if theirs["whole"] is not None:
        few = texts[: len(theirs["whole"])]
        _count(cuts, few, engine_jobs.tokenise(path, few, add_special=True), theirs["whole"], folder, around=True)
    cuts.outcome = "WRONG" if cuts.n_wrong else "right"
    return cuts


def _count(
    cuts: Cuts,
    texts: Sequence[str],
    ours: Sequence[list[int]],
    theirs: Sequence[list[int]],
    folder: Path,
    *,
    around: bool = False,
) -> None:
    different = [i for i in range(len(texts)) if ours[i] != theirs[i]]
    cuts.n_sequences += len(texts)
    explained = _explained(cuts, [texts[i] for i in different], [theirs[i] for i in different], folder, around=around)
    for i, told in zip(different, explained, strict=True):
        cuts.n_told += told
        cuts.n_wrong += not told
        if not told and len(cuts.examples) < 8:
            cuts.examples.append((texts[i], ours[i], theirs[i]))


def _explained(
    cuts: Cuts, texts: Sequence[str], theirs: Sequence[list[int]], folder: Path, *, around: bool
) -> list[bool]:
    """Whether a remark of the export tells of each difference, and of all of it: with what it tells of put right, the
    ids are the same.
    """
    said = " ".join(cuts.remarks)
    if not texts:
        return []
    if "begins with one" in said:
        return _explained_by_spaces(texts, theirs, folder, around=around)
    if "written out" in said:
        return _explained_by_signs(texts, theirs, folder, around=around)
    if "combining marks" in said:
        plain = _split_in_ascii(folder, texts, around)
        return [ours == ids for ours, ids in zip(_tokens(folder, texts, around), plain, strict=True)]
    if "NFC" in said:
        composed = [unicodedata.normalize("NFC", text) for text in texts]
        return [ours == expected for ours, expected in zip(_tokens(folder, composed, around), theirs, strict=True)]
    return [False] * len(texts)


def _tokens(folder: Path, texts: Sequence[str], around: bool) -> list[list[int]]:
    return engine_jobs.tokenise(folder / "model.gguf", texts, add_special=around)


def _split_in_ascii(folder: Path, texts: Sequence[str], around: bool) -> list[list[int]]:
    """By the tokenizer's own rule, but that marks are no part of words and only ASCII letters have a case."""
    document = (folder / "tokenizer.json").read_text()
    for case, other in (("u", "a-z"), ("l", "A-Z")):
        kinds = r"\\p{Lu}\\p{Lt}" if case == "u" else r"\\p{Ll}"
        document = document.replace(rf"[{kinds}\\p{{Lm}}\\p{{Lo}}\\p{{M}}]", rf"[\\p{{L}}&&[^{other}]]")
    tokenizer = tokenizers.Tokenizer.from_str(document)
    return [list(tokenizer.encode(text, add_special_tokens=around).ids) for text in texts]


def _explained_by_signs(texts: Sequence[str], theirs: Sequence[list[int]], folder: Path, *, around: bool) -> list[bool]:
    """Runs of written-out signs cut apart from what is beside them, for a vocabulary without a space before a text."""
    vocabulary = read_vocabulary(folder)
    pieces = [(number, piece) for number, text in enumerate(texts) for piece in re.split("(\u2581\u2581+)", text)]
    found: list[list[int]] = [[] for _ in texts]
    for (number, _), cut in zip(pieces, _tokens(folder, [piece for _, piece in pieces], False), strict=True):
        found[number] += cut
    first = [vocabulary.special_ids["bos"]] if around and vocabulary.add_bos else []
    return [[*first, *ours] == expected for ours, expected in zip(found, theirs, strict=True)]


def _explained_by_spaces(
    texts: Sequence[str], theirs: Sequence[list[int]], folder: Path, *, around: bool
) -> list[bool]:
    """Each text cut piece by piece between added tokens, with the space before a piece that its tokenizer puts."""
    vocabulary = read_vocabulary(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    (metaspace,) = parts(document["pre_tokenizer"], "pretokenizers")
    ids = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    pattern = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) + ")")
    bare = folder / "bare.gguf"
    entries = {"general.architecture": string("llama"), "general.name": string("bare")}
    write_gguf(bare, entries | replace(vocabulary, add_space_prefix=False).entries(), [])
    pieces: list[tuple[int, str]] = []  # text number, what of it is cut alone
    for number, text in enumerate(texts):
        before = ""
        for at, piece in enumerate(pattern.split(text)):
            if piece and at % 2 == 0:
                begins = piece[0] in " \u2581"
                puts = not begins and (not before or metaspace["prepend_scheme"] == "always")
                pieces.append((number, " " + piece if puts else piece))
            elif piece:
                pieces.append((number, piece))
            before = piece if at % 2 else before
    found: list[list[int]] = [[] for _ in texts]
    for (number, _), cut in zip(pieces, engine_jobs.tokenise(bare, [piece for _, piece in pieces]), strict=True):
        found[number] += cut
    first = [vocabulary.special_ids["bos"]] if around and vocabulary.add_bos else []
    return [[*first, *ours] == expected for ours, expected in zip(found, theirs, strict=True)]
