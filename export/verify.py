"""Proof of an export: the same tokens, the same logits, and what quantising has cost."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.export import engine
from edgellm.export.reference import NoReference, reference_logits
from edgellm.export.script import n_compared, transformers_logits
from edgellm.export.source import ModelSource

MAX_LOGITS_ERROR = 0.02  # half precision rounds activations; an exchanged or lost tensor is off by about 1
N_LOGITS = 24  # tokens

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


class VerificationFailed(RuntimeError):
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
    base_perplexity = engine.perplexity(base, TEXT, n_ctx=256)
    report["perplexity"] = {"unquantised": round(base_perplexity, 4)} | {
        quant: round(engine.perplexity(path, TEXT, n_ctx=256), 4) for quant, path in quantised.items() if path != base
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
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    for text, found, ids in zip(texts, engine.tokenise(path, texts), expected, strict=True):
        if found != ids:
            raise VerificationFailed(f"{path.name} cuts {text!r} into {found} where the source's tokenizer says {ids}")
    return {"n_texts": len(texts), "different": 0}


def check_logits(folder: Path, path: Path, *, python: Path | None = None) -> dict[str, Any] | str:
    """Compare the file's logits with a plain forward pass over the checkpoint, or with transformers' of `python`."""
    tokens = engine.tokenise(path, [TEXT])[0][: n_compared(folder) if python else N_LOGITS]
    try:
        expected = transformers_logits(python, folder, tokens) if python else reference_logits(folder, tokens)
    except NoReference as error:
        return f"not compared: {error}"
    found = engine.logits(path, tokens)
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise VerificationFailed(f"{path.name} gives logits of shape {found.shape}, not {expected.shape}")
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    if errors.max() > MAX_LOGITS_ERROR:
        raise VerificationFailed(
            f"{path.name} gives other logits than the checkpoint (relative error {errors.max():.3g}): "
            "please report the model; --no-verify exports it all the same"
        )
    same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    return {"n_tokens": len(tokens), "max_relative_error": round(float(errors.max()), 7), "same_choice": same}
