"""Proof of an export: the same tokens, the same logits, and what quantising has cost."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export.check.reference import NoReference, reference_logits
from edgellm.export.check.reference_config import ReferenceConfig, read_reference_config
from edgellm.export.check.reference_t5 import t5_logits
from edgellm.export.convert import engine_jobs
from edgellm.export.convert.script import n_compared, transformers_logits
from edgellm.export.obtain.source import ModelSource
from edgellm.export.read.tokenizer_facts import APPROXIMATE
from edgellm.memory.architectures import ENCODER_DECODER
from edgellm.memory.errors import EdgellmError
from edgellm.memory.gguf import GgufHeader, read_header

MAX_LOGITS_ERROR = 0.02  # half precision rounds activations; an exchanged or lost tensor is off by about 1
N_TOKENS = 96  # of a text, where nothing asks for a longer one
N_ROWS = 32  # whose logits are compared at its beginning, and as many at its end
MAX_TOKENS = 4096 + N_ROWS
MAX_MULTIPLICATIONS = 1_000_000_000_000  # some ten seconds, for texts beyond the context of the training
SHORT_CONTEXT = 256  # tokens, the least that llama.cpp allots

# Texts that trip tokenizers: runs of spaces, digits, contractions, marks, scripts without spaces, emoji, code,
# control characters.
NASTY = (
    "", " ", "   a   b  ", "\n\n\n", " \r\n \n", "\t\tx\t", "a\u00a0b", "\u3000全角", "x\u200by",
    "I'm you're WE'LL they'D", "3.14159 1234567890 1,000,000", "e\u0301 n\u0303", "नमस्ते दुनिया",
    "สวัสดีชาวโลก", "你好，世界！", "日本語とカタカナ", "안녕하세요", "שלום", "مرحبا", "Привет, мир",
    "👩\u200d👩\u200d👧 🏳️\u200d🌈 🤦🏽", "\u0001\u007f", "\ufeffbom", "<0x0A>",
    "def f(x):\n    return {\n        'a': [1, 2],\n    }\n", "if (a<b && c>>=2) { *p++ ^= ~q; } // ok",
    "a" * 50, "https://example.org/a?b=c&d=%20#frag", " " * 40 + "x", "ﬁ ½ ² Ⅷ", "𝔘𝔫𝔦 𐍈",
    "CamelCase_with-dashes", "...!!!???---", "’“”–—",
)  # fmt: skip

# Our own prose and code, so that nobody's training set holds it; perplexities are stated for this text.
TEXT = """\
The ferry left at six, before the fog had lifted, and those who stood at the rail saw the harbour lights go out \
one by one. Marta counted them. She had been told that the crossing would take four hours and that there would \
be coffee, and she believed the first of these. Below, in the saloon, a man was explaining to his daughter how a \
lock works: the gates close behind the boat, the water comes in through the sluices, and what looked like the \
end of the canal turns out to be a step of a staircase. "Who pays for the water?" the girl asked. He thought \
about it for longer than she had expected. "Nobody," he said. "It comes down from the hills. You only have to \
let it through in the right order."

In the afternoon the wind turned. The captain, who disliked surprises, had the cargo checked once more, and \
found that two of the crates were not on the list. One held seventeen clocks, all stopped at different hours. \
The other was empty but for a sheet of paper on which somebody had written the name of every station between the \
coast and the capital, with the distances in kilometres: 12, 19, 7, 31, 24. Added up they came to 93, which is \
not the length of any railway in that country. He folded the paper, put it into the log book between two pages, \
and gave orders to keep the crates where they were.

def merge(left, right):
    \"\"\"Merge two sorted lists into one.\"\"\"
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]

The simplest way to see that this function is correct is to look at what stays true each time round the loop. \
Everything in the result is in order, and nothing that is still to come is smaller than its last element. When \
one of the lists runs out, what remains of the other can be appended as it is, because it was sorted to begin \
with. The number of comparisons is at most the sum of the lengths minus one. If the lists hold n and m elements, \
the time is therefore linear in n + m, and so is the memory, since a new list is built. Sorting a whole list by \
splitting it in half, sorting the halves, and merging them takes n log n steps. That is as good as any method \
can be which only compares elements with one another.
"""


class VerificationFailed(EdgellmError, RuntimeError):
    """The export is not the model it was made from; the message says how it differs."""


def verification(
    source: ModelSource, base: Path, quantised: Mapping[str, Path], *, python: Path | None = None
) -> dict[str, Any]:
    """Check `base` against the source and measure what each quantised file has lost.

    Args:
        python: that has transformers, which then computes the logits to compare with.

    Returns:
        Figures for the manifest; checks that could not be made say why.

    Raises:
        VerificationFailed: other tokens, or other logits, than the source's.
    """
    report: dict[str, Any] = {}
    if source.is_gguf:
        report["tokens"] = report["logits"] = "the source is a GGUF file: there is nothing to compare it with"
    else:
        report["tokens"] = check_tokens(source.path, base)
        report["logits"] = check_logits(source.path, base, python=python)
    base_perplexity = engine_jobs.perplexity(base, TEXT, n_ctx=256)
    report["perplexity"] = {"unquantised": round(base_perplexity, 4)} | {
        quant: round(engine_jobs.perplexity(path, TEXT, n_ctx=256), 4)
        for quant, path in quantised.items()
        if path != base
    }
    return report


def check_tokens(folder: Path, path: Path, n_random: int = 500) -> dict[str, Any] | str:
    """Compare how the file cuts text with how the `tokenizers` package does."""
    import tokenizers

    if not (folder / "tokenizer.json").exists():
        return "not compared: the source has no tokenizer.json"
    try:
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the package raises nothing more exact
        return f"not compared: the `tokenizers` package cannot read the source's tokenizer.json ({error})"
    rng = random.Random(0)
    texts = [*NASTY, *("".join(rng.choices(NASTY, k=3)) for _ in range(n_random))]
    texts = [unicodedata.normalize("NFC", text) for text in texts]  # some references do so first; llama.cpp never does
    if type(reference.pre_tokenizer).__name__ == "Metaspace":  # puts no space before one; llama.cpp does
        texts = [text for text in texts if not text.startswith(" ")]
    if read_header(path).metadata.get("tokenizer.ggml.pre") in APPROXIMATE:
        texts = [text for text in texts if not any(map(_has_case_or_marks, text))]
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    for text, found, ids in zip(texts, engine_jobs.tokenise(path, texts), expected, strict=True):
        if found != ids:
            raise VerificationFailed(f"{path.name} cuts {text!r} into {found} where the source's tokenizer says {ids}")
    return {"n_sequences": len(texts), "different": 0}


def _has_case_or_marks(sign: str) -> bool:
    """What llama.cpp's stand-ins for some rules do not see."""
    return sign > "\x7f" and unicodedata.category(sign) in {"Lu", "Ll", "Lt", "Mn", "Mc", "Me"}


def check_logits(folder: Path, path: Path, *, python: Path | None = None) -> dict[str, Any] | str:
    """Compare the file's logits with a plain forward pass over the checkpoint, or with transformers' of `python`, at
    the beginning and the end of texts that are long enough to show what only far positions do.

    Raises:
        VerificationFailed: other logits.
    """
    header = read_header(path)
    try:
        if python:
            lengths = [n_compared(folder)]
        elif header.architecture in ENCODER_DECODER:
            lengths = [min(N_TOKENS, int(header.hparam("context_length", N_TOKENS)))]
        else:
            lengths = _telling_lengths(read_reference_config(folder), header)
        ids = engine_jobs.tokenise(path, [TEXT])[0]
        checked = [_compared(folder, header, (ids * (n // len(ids) + 1))[:n], python) for n in lengths]
    except NoReference as error:
        return f"not compared: {error}"
    return {
        "n_tokens": sum(n for n, _, _ in checked),
        "longest_text": max(lengths),
        "max_relative_error": round(max(error for _, error, _ in checked), 7),
        "same_choice": sum(same for _, _, same in checked),
    }


def _compared(folder: Path, header: GgufHeader, tokens: Sequence[int], python: Path | None) -> tuple[int, float, int]:
    """(rows compared, the worst relative error, rows whose likeliest token is the same)"""
    path = header.path
    rows = sorted({*range(min(N_ROWS, len(tokens))), *range(max(0, len(tokens) - N_ROWS), len(tokens))})
    if python:
        expected = transformers_logits(python, folder, tokens)[rows]
    else:
        known = t5_logits if header.architecture in ENCODER_DECODER else reference_logits
        expected = known(folder, tokens, rows)
    found = engine_jobs.logits(path, tokens, rows)
    if found.shape != expected.shape:
        raise VerificationFailed(f"{path.name} gives logits of shape {found.shape}, not {expected.shape}")
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    errors = np.where(np.isnan(errors), np.inf, errors)
    worst = int(np.argmax(errors))
    # Where two experts are as good as each other, rounding chooses: a few tokens may then differ at will.
    judged = float(np.quantile(errors, 0.9) if header.hparam("expert_count", 0) else errors[worst])
    if not judged <= MAX_LOGITS_ERROR:
        raise VerificationFailed(
            f"{path.name} gives other logits than the checkpoint (relative error {judged:.3g}, the worst at token "
            f"{rows[worst] + 1} of {len(tokens)}): please report the model; --no-verify exports it all the same"
        )
    return len(rows), float(errors[worst]), int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())


def _telling_lengths(config: ReferenceConfig, header: GgufHeader) -> list[int]:
    """Lengths of text that show a file's windows and stretched positions, within the context that it states."""
    n_context = int(header.hparam("context_length"))
    beyond = [window + N_ROWS for window in config.windows if window is not None]
    affordable = MAX_MULTIPLICATIONS // (header.file_bytes // 2)  # of half-precision weights
    stretched = [rope.original_positions + N_ROWS for rope in config.ropes if rope.is_stretched]
    beyond += [min(n, affordable) for n in stretched]
    longest = min(max([N_TOKENS, *beyond]), MAX_TOKENS, n_context)
    # Factors for short texts are other ones; llama.cpp goes by a context that it rounds up.
    has_short = any(rope.kind == "longrope" and rope.original_positions >= SHORT_CONTEXT for rope in config.ropes)
    return sorted({min(N_TOKENS, longest), longest} if has_short else {longest})
