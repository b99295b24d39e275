"""T5's checkpoints, converted by edgellm itself: the logits of plain arithmetic, or refused by name."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Weights, write_weights
from sentencepiece_file import message, setting, varint

from edgellm.export.check import fidelity
from edgellm.export.check.reference_t5 import t5_logits
from edgellm.export.convert import conversion, engine_jobs, hf_to_gguf
from edgellm.export.read.facts import UnsupportedModel
from edgellm.export.read.tokenizer_facts import TokenizerError
from edgellm.export.read.unigram import read_unigram
from edgellm.memory.gguf import read_header

N_VOCAB = 64
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁the", -2.0), ("▁cat", -2.1), ("er", -2.5)]
PIECES += [(chr(code), -6.0 - 0.01 * code) for code in range(97, 123)]
CONFIG: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128,
    "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": False, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    "vocab_size": N_VOCAB, "is_encoder_decoder": True, "dropout_rate": 0.1, "n_positions": 512,
}  # fmt: skip
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]}


def tokenizer(**changes: Any) -> dict[str, Any]:
    added = [("<pad>", 0), ("</s>", 1), ("<unk>", 2), ("<extra_id_0>", len(PIECES))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": token, "content": text, **flags} for text, token in added],
        "normalizer": None,
        "pre_tokenizer": METASPACE,
        "post_processor": None,
        "decoder": METASPACE,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [list(piece) for piece in PIECES], "byte_fallback": False},
        **changes,
    }  # fmt: skip


def weights_of(config: dict[str, Any], *, head: bool, every_bias: bool = False) -> Weights:
    rng = np.random.default_rng(0)
    width, n_embd, n_ff = config["num_heads"] * config["d_kv"], config["d_model"], config["d_ff"]
    found: Weights = {}

    def add(name: str, *shape: int, scale: float = 0.2) -> None:
        values = rng.standard_normal(shape).astype(np.float32)
        found[name] = 1 + 0.1 * values if len(shape) == 1 else scale * values

    add("shared.weight", config["vocab_size"], n_embd, scale=1.0)
    if head:
        add("lm_head.weight", config["vocab_size"], n_embd)
    gated = config["feed_forward_proj"] != "relu"
    for half, n in (("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])):
        add(f"{half}.final_layer_norm.weight", n_embd)
        for block in range(n):
            at = f"{half}.block.{block}.layer."
            if block == 0 or every_bias:
                add(f"{at}0.SelfAttention.relative_attention_bias.weight", 32, config["num_heads"], scale=1.0)
            kinds = ["SelfAttention", *(["EncDecAttention"] if half == "decoder" else [])]
            for place, kind in enumerate(kinds):
                add(f"{at}{place}.layer_norm.weight", n_embd)
                for name in "qkv":
                    add(f"{at}{place}.{kind}.{name}.weight", width, n_embd)
                add(f"{at}{place}.{kind}.o.weight", n_embd, width)
            add(f"{at}{len(kinds)}.layer_norm.weight", n_embd)
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                add(f"{at}{len(kinds)}.DenseReluDense.{name}.weight", n_ff, n_embd)
            add(f"{at}{len(kinds)}.DenseReluDense.wo.weight", n_embd, n_ff)
    return found


def model(
    folder: Path, *, head: bool = True, every_bias: bool = False, cut: dict[str, Any] | None = None, **told: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | told
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(cut or tokenizer()))
    write_weights(folder, weights_of(config, head=head, every_bias=every_bias))
    return folder


VARIANTS: dict[str, dict[str, Any]] = {
    "gated, a head of its own": {},
    "the first T5: relu, the embedding as the head": {"head": False, "feed_forward_proj": "relu",
                                                      "tie_word_embeddings": True},
    "as transformers 5 saves it": {"head": False, "tie_word_embeddings": True, "scale_decoder_outputs": False},
    "fewer layers in the decoder": {"num_layers": 3, "num_decoder_layers": 1},
    "mT5": {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5", "tie_word_embeddings": True},
    "umT5": {"architectures": ["UMT5ForConditionalGeneration"], "model_type": "umt5", "every_bias": True},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_file_computes_what_the_checkpoint_says(variant: str, tmp_path: Path) -> None:
    folder, path = model(tmp_path / "t5", **VARIANTS[variant]), tmp_path / "t5.gguf"
    assert conversion.choose(folder).by == "own"
    hf_to_gguf.to_gguf(folder, path, float_type="F32")
    tokens = [int(token) for token in np.random.default_rng(1).integers(3, 32, 150)]
    rows = [0, 1, 40, 149]
    expected, found = t5_logits(folder, tokens, rows), engine_jobs.logits(path, tokens, rows)
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())
    told = fidelity.check_tokens(folder, path, 50)
    assert isinstance(told, dict)
    assert told["different"] == 0


def test_the_head_of_the_first_t5_is_scaled_as_transformers_scales_it(tmp_path: Path) -> None:
    names = {"scaled": {"tie_word_embeddings": True}, "plain": {"scale_decoder_outputs": False}}
    rows = {}
    for name, told in names.items():
        folder = model(tmp_path / name, head=False, **({"tie_word_embeddings": True} | told))
        hf_to_gguf.to_gguf(folder, tmp_path / f"{name}.gguf", float_type="F32")
        rows[name] = engine_jobs.logits(tmp_path / f"{name}.gguf", [4, 5, 6], [0])
    np.testing.assert_allclose(rows["scaled"] * 8, rows["plain"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"relative_attention_max_distance": 64}, "relative_attention_max_distance 64"),
        ({"feed_forward_proj": "gated-silu"}, 'feed_forward_proj "gated-silu"'),
        ({"num_layers": 1}, "cache for no more than those of the encoder"),
        ({"head": False}, "lacks lm_head.weight"),
        ({"decoder_start_token_id": 4000}, "is no token of the model"),
        ({"d_ff": 64}, "where config.json makes it"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised already"),
        ({"sparse_step": 1}, "sparse_step 1"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(told: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = model(tmp_path / "t5")
    (folder / "config.json").write_text(json.dumps(CONFIG | {k: v for k, v in told.items() if k != "head"}))
    if "head" in told:
        write_weights(folder, weights_of(CONFIG, head=False))
    with pytest.raises(UnsupportedModel, match=sentence):
        hf_to_gguf.to_gguf(folder, tmp_path / "t5.gguf")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"type": "Unigram", "unk_id": 2, "vocab": PIECES, "byte_fallback": True}}, "byte_fallback"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": PIECES}}, "no token for unknown signs"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "where unigram ones are exported"),
        ({"normalizer": {"type": "Lowercase"}}, "normalised by Lowercase"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "is damaged"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "*"}}, "is damaged"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "split by ByteLevel"),
        ({"pre_tokenizer": SPLIT}, "no map writes"),
        ({"post_processor": {"type": "RobertaProcessing"}}, "post-processor RobertaProcessing"),
        ({"model": {"type": "Unigram", "unk_id": 2, "vocab": [*PIECES, ["zz", 0.0], ["er", 0.0]]}}, "there twice"),
        ({"model": {"type": "Unigram", "unk_id": 2, "vocab": "none"}}, "damaged"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cuts_text_by_otherwise_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = model(tmp_path / "t5", cut=tokenizer(**changes))
    with pytest.raises(TokenizerError, match=sentence):
        read_unigram(folder, N_VOCAB)


def test_a_map_of_signs_reaches_the_file(tmp_path: Path) -> None:
    charsmap = (4).to_bytes(4, "little") + bytes(4) + b"a\0"
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    found = read_unigram(model(tmp_path / "t5", cut=tokenizer(normalizer=normalizer, pre_tokenizer=SPLIT)), N_VOCAB)
    assert found.charsmap == charsmap
    assert found.removes_spaces


def test_gaps_are_text_that_people_write_and_other_special_tokens_are_not(tmp_path: Path) -> None:
    folder, path = model(tmp_path / "t5"), tmp_path / "t5.gguf"
    hf_to_gguf.to_gguf(folder, path)
    types = read_header(path).array("tokenizer.ggml.token_type")
    assert list(types[:4]) == [3, 3, 2, 1]
    assert types[len(PIECES)] == 4
    assert engine_jobs.tokenise(path, ["the <extra_id_0>"])[0][-1] == len(PIECES)


def test_spiece_model_is_read_where_that_is_all_there_is(tmp_path: Path) -> None:
    folder = model(tmp_path / "t5")
    from_json = read_unigram(folder, N_VOCAB)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="neither"):
        read_unigram(folder, N_VOCAB)
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    pieces = b""
    for text, score in PIECES:
        piece = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
        pieces += message(1, piece + setting(3, kinds.get(text, 1)))
    (folder / "spiece.model").write_bytes(pieces + message(2, setting(3, 1)) + message(3, setting(3, 1)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 1}))
    found = read_unigram(folder, N_VOCAB)
    assert found.tokens == from_json.tokens
    assert found.types == from_json.types
    assert found.removes_spaces  # SentencePiece's own default
    np.testing.assert_allclose(found.scores or [], from_json.scores or [], rtol=1e-6)
