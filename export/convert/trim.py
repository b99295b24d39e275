"""Make a drafter smaller by leaving out tokens it can do without: a smaller embedding and head, the rest untouched.

A draft model's last matrix is often its largest (Gemma 3 270M: two thirds of all weights), and a drafter need not be
able to say everything: what it proposes is checked by the target. FR-Spec (arXiv 2502.14856) limits the head to the
frequent tokens; here the vocabulary itself is cut, so that the embedding shrinks too. Rows are gathered as they lie in
the file, quantised or not.

Such a file is a model of its own. What it cannot do is read as before: a word whose token is gone is spelt in pieces,
in a way the model was not trained on. So the whole vocabulary and its embeddings go into a file beside it, of which
only the rows of tokens that are read are ever in memory: the runtime reads with these, and writes with the few and with
what the context holds already.

The tokenizer stays complete: all bytes are kept, so any text can be written; a merge is kept where its parts and its
result are. A text whose tokens, and the steps that lead to them, are all kept is cut exactly as before: each step
merges the best pair there is, and leaving out pairs that were not the best changes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from edgellm.export.convert import engine_jobs
from edgellm.export.convert import gguf_writer as gguf
from edgellm.export.convert.gguf_copy import copied, raw_entries
from edgellm.export.convert.gguf_writer import PlannedTensor, write_gguf
from edgellm.export.read.gguf_vocabulary import BYTE, NORMAL, UNUSED
from edgellm.memory.byte_encoder import SPACE, byte_alphabet
from edgellm.memory.errors import EdgellmError
from edgellm.memory.gguf import GgufHeader, TensorInfo, read_header

FREQUENT = Path(__file__).with_name("frequent.txt")
ROW_MULTIPLE = 64  # kept tokens are a multiple of this: kernels like whole blocks of rows
_RESERVED = re.compile(rb"<unused\d+>|<\|reserved_special_token_\d+\|>|\[PAD\d+\]")
# Of these llama.cpp takes embeddings for tokens. Gemma's are scaled by the root of their width, by whoever gives them.
_EMBEDDING_SCALES: dict[str, Callable[[int], float]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "phi3"), lambda width: 1.0),
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), math.sqrt),
}
_VOCABULARY_TENSORS = ("token_embd.weight", "output.weight", "output.bias")


class TrimError(EdgellmError, ValueError):
    """A vocabulary that cannot be cut as asked."""


def choose(path: Path, share: float, corpus: str = "") -> list[int]:
    """The tokens to keep: about `share` of a model's vocabulary, as ascending ids.

    Bytes, ASCII signs and control tokens stay always. Then come the tokens of `corpus`, the most frequent first, those
    of the words and signs of English and of programs (`frequent.txt`), then the rest by id, which is about the order in
    which a BPE vocabulary was learned; each brings the tokens that its merges pass through.

    Raises:
        TrimError: a share out of reach, or a vocabulary of another kind than BPE.
    """
    header = read_header(path)
    tokens, types, scores, merges = _vocabulary(header)
    parts = _Parts.of(header, tokens, scores, merges)
    wanted = -(-int(share * len(tokens)) // ROW_MULTIPLE) * ROW_MULTIPLE
    kept = {
        token
        for token, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if (kind not in {NORMAL, UNUSED} and not _RESERVED.fullmatch(text)) or text in parts.alphabet or kind == BYTE
    } | {
        value
        for key, value in header.metadata.items()
        if _is_token_id(key) and isinstance(value, int) and 0 <= value < len(tokens)
    }
    if not 0 < share <= 1 or wanted < len(kept):
        raise TrimError(
            f"a vocabulary of {len(tokens):,} tokens cannot be cut to {share:g} of it: "
            f"its bytes and control tokens alone are {len(kept):,}"
        )
    for token in [*_wanted(path, header, corpus), *range(len(tokens))]:
        if types[token] == NORMAL and token not in kept:
            family = parts.family(token) - kept
            if len(kept) + len(family) <= wanted:
                kept |= family
        if len(kept) >= wanted:
            break
    return sorted(kept)


def _wanted(path: Path, header: GgufHeader, corpus: str) -> list[int]:
    """Tokens by what is known of their use, the most wanted first; some twice."""
    words = FREQUENT.read_text(encoding="ascii").splitlines()
    words = [word.encode().decode("unicode_escape") for word in words]
    if header.metadata.get("tokenizer.ggml.model") == "llama" and header.metadata.get(
        "tokenizer.ggml.add_space_prefix", True
    ):
        words = [word.removeprefix(" ") for word in words]  # the tokenizer puts one there itself
    first, *cut = engine_jobs.tokenise(path, [corpus, *words])
    common: dict[int, float] = {}
    for rank, ids in enumerate(cut):
        for token in ids:
            common[token] = common.get(token, 0.0) + 1 / (rank + 10)  # Zipf's law: the list holds no counts
    return [token for token, _ in Counter(first).most_common()] + sorted(common, key=lambda token: -common[token])


def trim_vocabulary(source: Path, target: Path, kept: Sequence[int]) -> None:
    """Write `source` with the tokens `kept` (ascending ids) alone, renumbered in that order; whole or not at all.

    Raises:
        TrimError: tensors that do not lie as a vocabulary's rows.
    """
    header = read_header(source)
    entries = dict(raw_entries(source))
    tokens, types, scores, merges = _vocabulary(header)
    names = [tensor.name for tensor in header.tensors if tensor.name != "token_embd.weight"]
    if per_layer := next((name for name in names if "per_layer_token_embd" in name), None):
        raise TrimError(f"{source} has embeddings for its layers too ({per_layer}), which are not cut: leave it whole")
    if header.hparam("nextn_predict_layers"):
        raise TrimError(f"{source} carries a draft head of its own, which shares its vocabulary: leave that as it is")
    if not kept or kept[-1] >= len(tokens):
        raise TrimError(f"{source} has {len(tokens):,} tokens; one that it lacks was to be kept")
    new_ids = {old: new for new, old in enumerate(kept)}
    entries["tokenizer.ggml.tokens"] = gguf.strings([tokens[old] for old in kept])
    entries["tokenizer.ggml.token_type"] = gguf.i32s([types[old] for old in kept])
    if scores:
        entries["tokenizer.ggml.scores"] = gguf.f32s([scores[old] for old in kept])
    if merges:
        texts = {tokens[old] for old in kept}
        entries["tokenizer.ggml.merges"] = gguf.strings([merge for merge in merges if _is_kept(merge, texts)])
    for key, value in header.metadata.items():
        if _is_token_id(key):
            entries.pop(key, None)
            if value in new_ids:
                entries[key] = gguf.u32(new_ids[value])
    if f"{header.architecture}.vocab_size" in entries:
        entries[f"{header.architecture}.vocab_size"] = gguf.u32(len(kept))
    entries["edgellm.vocabulary.original_size"] = gguf.u32(len(tokens))
    entries["edgellm.vocabulary.words"] = gguf.string(_words_key(header, kept))
    planned = [_planned(source, header, tensor, kept, len(tokens)) for tensor in header.tensors]
    write_gguf(target, entries, planned)


def write_words(source: Path, target: Path, kept: Sequence[int]) -> bool:
    """Write what a model trimmed to `kept` needs to read all tokens of `source`; whole or not at all.

    Args:
        source: the untrimmed model as Q8_0.

    Returns:
        False, and nothing is written, where llama.cpp takes no embeddings for this kind of model.
    """
    header = read_header(source)
    tensor = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    scale = _EMBEDDING_SCALES.get(header.architecture)
    if scale is None or tensor is None:
        return False
    entries = dict(raw_entries(source))
    entries["edgellm.vocabulary.words"] = gguf.string(_words_key(header, kept))
    entries["edgellm.vocabulary.kept"] = gguf.i32s(kept)
    entries["edgellm.embedding_scale"] = gguf.f32(scale(tensor.shape[0]))
    # What reads, and where it is another matrix also what writes: words of the context can be written again.
    matrices = [tensor for tensor in header.tensors if tensor.name in {"token_embd.weight", "output.weight"}]
    if any(matrix.type != "Q8_0" for matrix in matrices):
        return False
    write_gguf(target, entries, [copied(header, matrix) for matrix in matrices])
    return True


def _words_key(header: GgufHeader, kept: Sequence[int]) -> str:
    """By which a trimmed model and its words know each other."""
    return hashlib.sha256(header.vocabulary_key().encode() + struct.pack(f"<{len(kept)}i", *kept)).hexdigest()


def _vocabulary(header: GgufHeader) -> tuple[list[bytes], list[int], list[float], list[bytes]]:
    """Tokens, types, scores and merges, as many of each as there must be."""
    keys = ("tokens", "token_type", "scores", "merges")
    tokens, types, scores, merges = (header.array(f"tokenizer.ggml.{key}") for key in keys)
    is_sound = (
        all(isinstance(text, bytes) for text in (*tokens, *merges))
        and all(isinstance(kind, int) for kind in types)
        and all(isinstance(score, float) for score in scores)
        and all(b" " in merge[1:] for merge in merges)
    )
    if not is_sound or not tokens or len(types) != len(tokens) or len(scores) not in {0, len(tokens)}:
        raise TrimError(f"{header.path} has a damaged or incomplete vocabulary: pull or export it again")
    return tokens, types, scores, merges


def _is_token_id(key: str) -> bool:
    return key.startswith("tokenizer.ggml.") and key.endswith("_token_id")


def _is_kept(merge: bytes, texts: set[bytes]) -> bool:
    left, right = _halves(merge)
    return left in texts and right in texts and left + right in texts


def _halves(merge: bytes) -> tuple[bytes, bytes]:
    cut = merge.index(b" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _planned(path: Path, header: GgufHeader, tensor: TensorInfo, kept: Sequence[int], n_vocab: int) -> PlannedTensor:
    if tensor.name not in _VOCABULARY_TENSORS:
        return copied(header, tensor)
    start = header.data_offset + tensor.offset
    if not tensor.shape or tensor.shape[-1] != n_vocab:
        raise TrimError(f"{path}: {tensor.name} has {tensor.shape[-1]:,} rows for {n_vocab:,} tokens")
    row_bytes = tensor.n_bytes // n_vocab
    return PlannedTensor(
        tensor.name, (*tensor.shape[:-1], len(kept)), tensor.type, lambda: _rows(path, start, row_bytes, kept)
    )


def _rows(path: Path, start: int, row_bytes: int, kept: Sequence[int]) -> Iterator[bytes]:
    with path.open("rb") as file:
        for row in kept:
            file.seek(start + row * row_bytes)
            yield file.read(row_bytes)


class _Parts:
    """Which tokens a token is made of on its way from single signs."""

    def __init__(self, ids: dict[bytes, int], alphabet: set[bytes]) -> None:
        self._ids, self.alphabet = ids, alphabet

    @classmethod
    def of(
        cls, header: GgufHeader, tokens: Sequence[bytes], scores: Sequence[float], merges: Sequence[bytes]
    ) -> _Parts:
        ids = {text: token for token, text in enumerate(tokens)}
        model = header.metadata.get("tokenizer.ggml.model")
        if model == "gpt2":
            return _MergeParts(ids, merges)
        if model == "llama":
            return _ScoreParts(ids, scores)
        raise TrimError(f"{header.path}: a vocabulary of kind {model!r} is not trimmed; BPE ones are")

    def family(self, token: int) -> set[int]:
        """The token and all tokens that come about while it is put together."""
        raise NotImplementedError


class _MergeParts(_Parts):
    """Byte-level BPE: the first merge that makes a token is the one that does."""

    def __init__(self, ids: dict[bytes, int], merges: Iterable[bytes]) -> None:
        super().__init__(ids, {sign.encode() for sign in byte_alphabet()})
        self._halves: dict[bytes, tuple[bytes, bytes]] = {}
        for merge in merges:
            left, right = _halves(merge)
            self._halves.setdefault(left + right, (left, right))
        self._texts = {token: text for text, token in ids.items()}

    def family(self, token: int) -> set[int]:
        family: set[int] = set()
        waiting = [self._texts[token]]
        while waiting:
            text = waiting.pop()
            if text in self._ids and self._ids[text] not in family:
                family.add(self._ids[text])
                waiting += self._halves.get(text, ())
        return family


class _ScoreParts(_Parts):
    """SentencePiece BPE: of all neighbours that make a token, the pair with the highest score merges first."""

    def __init__(self, ids: dict[bytes, int], scores: Sequence[float]) -> None:
        super().__init__(ids, {bytes([sign]) for sign in range(0x20, 0x7F)} | {SPACE.encode()})
        self._scores = scores
        self._texts = {token: text for text, token in ids.items()}

    def family(self, token: int) -> set[int]:
        text = self._texts[token].decode(errors="ignore")
        symbols = [sign.encode() for sign in text]
        family = {token} | {self._ids[symbol] for symbol in symbols if symbol in self._ids}
        while len(symbols) > 1:
            pairs = [
                (self._scores[self._ids[left + right]], -at)
                for at, (left, right) in enumerate(itertools.pairwise(symbols))
                if left + right in self._ids
            ]
            if not pairs:
                break
            at = -max(pairs)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            family.add(self._ids[symbols[at]])
        return family
