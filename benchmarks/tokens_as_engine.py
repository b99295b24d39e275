"""Prompts as our rendering tokenises them against the engine's own tokenizer over the whole rendered text.

    python benchmarks/tokens_as_engine.py VOCABULARY.gguf ... [--texts 5000]
    python benchmarks/tokens_as_engine.py FOLDER-WITH-tokenizer.json ... [--texts 5000]

For a GGUF file the witness is `llama_tokenize` with control tokens parsed, for a folder the `tokenizers` package. Texts
are prose, code, many scripts, white space, emoji and markup near to control tokens, none of which spells one whole.
Exit status 1 where any prompt differs.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.runtime.text.template import ChatTemplate, Message, TemplateError
from edgellm.runtime.text.vocabulary import Vocabulary

LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
    "{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALL = "{% for m in messages %}{{ 'OPEN' }}{{ m.role }}{{ 'MIDDLE' }}{{ m.content }}{{ 'CLOSE' }}{% endfor %}"
PROSE = (
    "the a of Der die und return def class import x=1; don't I'm 3.14 1,000 --- === != <= >> != ... (a) [b] {c} "
    "Привет мир 你好 世界 今天 日本語 カタカナ 안녕 하세요 नमस्ते สวัสดี שלום مرحبا é ñ ü ß Å ﬁ ½ ² Ⅷ 𝔘𝔫𝔦 "
    "CamelCase snake_case kebab-case https://example.org/a?b=c#d f@b.org C:\\\\x /usr/bin `code` **bold** _it_ $x^2$"
)
WORDS = PROSE.split()
EMOJI = ("🙂", "👩‍👩‍👧‍👦", "🤦🏽‍♂️", "🏳️‍🌈", "❤️", "e\u0301", "\u200b", "\u00a0", "\u3000", "\ufeff", "▁", "�")
SPACES = (" ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", " \n", "\n ", "    ", "        ")
MARKUP = ("<", ">", "|", "<|", "|>", "<|im", "_start|>", "[", "]", "[/", "</", "<think", "< s>", "<0x0", "&lt;", "<b>")


def text(rng: random.Random) -> str:
    """Some words of one kind or of several."""
    kinds = (WORDS, WORDS, EMOJI, SPACES, MARKUP)
    one = rng.choice(kinds) if rng.random() < 0.3 else None
    return "".join(
        rng.choice(one or rng.choice(kinds)) + (" " if rng.random() < 0.5 else "") for _ in range(rng.randrange(0, 14))
    )


def templates(vocabulary: Vocabulary, own: str | None) -> list[str]:
    """Those of the families whose markers the vocabulary has, and one of its own markers with nothing around them."""
    literals = list(vocabulary.literals)
    found = [own] if own else []
    found += [LLAMA_2]
    found += [PHI_3] if "<|end|>" in literals else []
    found += [CHATML] if "<|im_end|>" in literals else []
    markers = [literal for literal in literals if len(literal) > 2 and literal[0] in "<["]
    rng = random.Random(len(markers))
    for _ in range(2 if markers else 0):
        source = ALL
        for name in ("OPEN", "MIDDLE", "CLOSE"):
            source = source.replace(name, rng.choice(markers).replace("'", ""))
        found.append(source)
    return found


def gguf(path: Path) -> tuple[Vocabulary, str | None, Callable[[str], list[int]], Any]:
    from llama_cpp import llama_cpp as api

    from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions

    model = LlamaModel(path, ModelOptions(vocabulary_only=True))
    vocab = api.llama_model_get_vocab(model.handle)

    def witness(rendered: str) -> list[int]:
        data = rendered.encode()
        room = (ctypes.c_int32 * (2 * len(data) + 16))()
        return list(room[: api.llama_tokenize(vocab, data, len(data), room, len(room), False, True)])

    return model.vocabulary, model.chat_template, witness, model


def folder(path: Path) -> tuple[Vocabulary, str | None, Callable[[str], list[int]], Any]:
    import tokenizers

    from edgellm.runtime.backends.hub_tokenizer import HubFolder

    reference = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    files = HubFolder(path)
    vocabulary = Vocabulary(files.tokenizer(reference.get_vocab_size()))

    def witness(rendered: str) -> list[int]:
        return list(reference.encode(rendered, add_special_tokens=False).ids)

    return vocabulary, files.chat_template(), witness, reference


def compare(path: Path, n_sequences: int) -> tuple[int, int, str]:
    """Texts compared, prompts that differ, and the first of them."""
    vocabulary, own, witness, _held = (folder if path.is_dir() else gguf)(path)
    n_sequences_read, n_different, first = 0, 0, ""
    usable = []
    for source in templates(vocabulary, own):
        try:
            template = ChatTemplate(source, vocabulary)
            template.render([Message("user", "Hello")])
        except TemplateError as error:
            print(f"  a template of {path.name} is left out: {error}", file=sys.stderr)
            continue
        usable.append(template)
    rng = random.Random(0)
    spellings = [literal for literal in vocabulary.literals if len(literal) > 2]
    while usable and n_sequences_read < n_sequences:
        template = usable[n_sequences_read // 3 % len(usable)]
        said = [text(rng), text(rng), text(rng)]
        if any(spelling in "".join(said) for spelling in spellings if spelling[0] in "<["):
            continue
        n_sequences_read += 3
        turns = [Message("user", said[0] or "x"), Message("assistant", said[1] or "y"), Message("user", said[2] or "z")]
        try:
            rendered, ours = template.text(turns), template.render(turns)
        except TemplateError:
            continue  # of white space alone, which the template left out
        theirs = witness(rendered)
        if vocabulary.adds_bos and vocabulary.bos is not None and theirs[:1] != [vocabulary.bos]:
            theirs.insert(0, vocabulary.bos)
        if ours != theirs:
            n_different += 1
            first = first or f"{rendered!r}\n    ours   {ours}\n    engine {theirs}"
    return n_sequences_read, n_different, first


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--texts", type=int, default=5000)
    options = parser.parse_args()
    n_wrong = 0
    print(f"{'vocabulary':32} {'texts':>6} {'prompts that differ':>20} {'s':>6}")
    for path in options.paths:
        started = time.perf_counter()
        n_read, n_different, first = compare(path, options.texts)
        print(f"{path.stem:32} {n_read:6} {n_different:20} {time.perf_counter() - started:6.1f}", flush=True)
        if first:
            print(f"    {first}")
        n_wrong += n_different
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
