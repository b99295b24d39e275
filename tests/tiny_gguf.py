"""Tiny random models that llama.cpp loads and runs, one for each way of keeping a cache.

`write_tiny(path, "qwen3", n_layers=4)` writes a GGUF with every tensor the architecture wants, random weights and a
byte-level vocabulary, so that any text can be tokenised. The same seed gives the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from tiny_attention import DECODERS, ENCODERS
from tiny_parts import Tensors, Tiny
from tiny_states import RECURRENT

ARCHITECTURES: dict[str, Callable[[gguf.GGUFWriter, Tensors, Tiny], None]] = {**DECODERS, **RECURRENT}

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_symbols() -> list[str]:
    """GPT-2's printable character for each byte 0..255."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols, extra = {}, 0
    for byte in range(256):
        if byte in kept:
            symbols[byte] = chr(byte)
        else:
            symbols[byte], extra = chr(256 + extra), extra + 1
    return [symbols[byte] for byte in range(256)]


def write_tiny(
    path: Path,
    architecture: str = "llama",
    *,
    vocab: Literal["bpe", "spm", "none"] = "bpe",
    n_vocab: int = 320,
    merges: Sequence[tuple[str, str]] = (("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("Ġ", "a")),
    weights: Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "MXFP4"] = "F32",
    chat_template: str | None = CHATML,
    added: Sequence[str] = (),
    seed: int = 0,
    sparse: bool = False,
    pooling: int | None = None,
    **sizes: Any,
) -> Path:
    """Write a model of `architecture` (a key of `ARCHITECTURES`, or of `ENCODERS`) and return its path.

    Args:
        vocab: `bpe` is GPT-2's byte-level kind with `merges`; `spm` is Llama 2's, pieces with byte fallback; `none` is
            that of files that hold weights alone.
        n_vocab: at least 262; what bytes, control tokens and merges leave is filled with unused tokens.
        weights: type of the matrices; quantised ones need widths that are multiples of 32.
        added: tokens that stand for themselves, as `<think>` does in many models.
        sparse: leave the weights as a hole in the file, so that a model of any size can be sized but not run.
        pooling: GGUF's number of how a text's states become one vector.
        sizes: fields of `Tiny`.
    """
    tiny = Tiny(**sizes)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")  # llama.cpp looks for family names in it and then wants their special tokens
    writer.add_block_count(tiny.n_layers)
    writer.add_context_length(tiny.n_ctx_train)
    writer.add_embedding_length(tiny.n_embd)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES[weights]]))
    rng = None if sparse else np.random.default_rng(seed)
    tensors = Tensors(writer, rng, gguf.GGMLQuantizationType[weights], n_vocab)
    tensors.add("token_embd.weight", tiny.n_embd, n_vocab)
    if not tiny.tied:
        tensors.add("output.weight", tiny.n_embd, n_vocab)
    (ARCHITECTURES | ENCODERS)[architecture](writer, tensors, tiny)
    if f"{architecture}.feed_forward_length" not in writer.kv_data[0]:
        writer.add_feed_forward_length(tiny.n_ff)
    _add_vocabulary(writer, vocab, n_vocab, merges, added)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    if chat_template:
        writer.add_chat_template(chat_template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if sparse:
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + tensors.n_bytes + 64)
    else:
        writer.write_tensors_to_file()
        writer.close()
    return path


_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "MXFP4": "MOSTLY_MXFP4_MOE",
    "Q8_0": "MOSTLY_Q8_0",
    "Q4_0": "MOSTLY_Q4_0",
    "Q4_1": "MOSTLY_Q4_1",
}


def _add_vocabulary(
    writer: gguf.GGUFWriter, kind: str, n_vocab: int, merges: Sequence[tuple[str, str]], added: Sequence[str]
) -> None:
    normal, unknown, control, byte = (int(gguf.TokenType[name]) for name in ("NORMAL", "UNKNOWN", "CONTROL", "BYTE"))
    pieces: list[tuple[str, int]]
    if kind == "none":
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(n_vocab)
        return
    if kind == "bpe":
        pieces = [(symbol, normal) for symbol in byte_symbols()]
        pieces += [(left + right, normal) for left, right in merges]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    else:
        pieces = [("<unk>", unknown), *((f"<0x{value:02X}>", byte) for value in range(256))]
        pieces += [(symbol, normal) for symbol in ("▁", *map(chr, range(97, 123)), "▁a", "▁t", "he", "in", "▁the")]
        writer.add_tokenizer_model("llama")
    first_control = len(pieces)
    pieces += [(text, control) for text in CONTROL]
    pieces += [(text, int(gguf.TokenType.USER_DEFINED)) for text in added]
    if len(pieces) > n_vocab:
        raise ValueError(f"n_vocab={n_vocab} holds no {kind} vocabulary of {len(pieces)} pieces")
    pieces += [(f"<|unused{i}|>", control) for i in range(n_vocab - len(pieces))]
    writer.add_vocab_size(n_vocab)
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_types([type_ for _, type_ in pieces])
    if kind == "spm":
        writer.add_token_scores([float(-i) if type_ == normal else 0.0 for i, (_, type_) in enumerate(pieces)])
        writer.add_unk_token_id(0)
    writer.add_bos_token_id(first_control)
    writer.add_eos_token_id(first_control + 2)
    writer.add_add_bos_token(kind == "spm")
