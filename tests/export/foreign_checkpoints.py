"""Tiny checkpoints with random weights of families that edgellm's own converter does not know, made by transformers.

Run by a Python that has torch, transformers and sentencepiece: `python foreign_checkpoints.py OUT [FAMILY ...]`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

N_VOCAB = 512
SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 32, "mamba_expand": 2}

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# family -> (configuration class, its settings, the tokenizer's rules)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "smollm3": ("SmolLM3", {}, _LLAMA3),
    "qwen3.5": (
        "Qwen3_5Text",
        {"head_dim": 64, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64,
         "linear_value_head_dim": 64, "tie_word_embeddings": True},
        _QWEN35,
    ),
    "gemma4": (
        "Gemma4Text",
        {"head_dim": 64, "global_head_dim": 128, "num_hidden_layers": 6, "hidden_size_per_layer_input": 32,
         "vocab_size_per_layer_input": N_VOCAB, "sliding_window": 32, "num_kv_shared_layers": 0,
         "final_logit_softcapping": 30.0},
        "gemma",
    ),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention", "conv", "full_attention"],
                      "block_auto_adjust_ff_dim": False}, _LLAMA3),
    "granite4-dense": ("GraniteMoeHybrid", {"layer_types": ["attention"] * 4, "num_local_experts": 0,
                                            "num_experts_per_tok": 0,
                                            "shared_intermediate_size": 512, "position_embedding_type": "rope", **MAMBA,
                                            "embedding_multiplier": 6.0, "logits_scaling": 4.0,
                                            "residual_multiplier": 0.5, "attention_multiplier": 0.1}, _LLAMA3),
    "granite4-hybrid": ("GraniteMoeHybrid", {"layer_types": ["mamba", "mamba", "attention", "mamba"], **MIXTURE,
                                             "shared_intermediate_size": 256, "position_embedding_type": None, **MAMBA,
                                             "embedding_multiplier": 6.0, "logits_scaling": 4.0,
                                             "residual_multiplier": 0.5, "attention_multiplier": 0.1}, _LLAMA3),
    "phi4-mini": ("Phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True,
                           "original_max_position_embeddings": 2048}, _O200K),
    "olmo2": ("Olmo2", {}, _LLAMA3),
    "exaone4": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}, _LLAMA3),
    "gpt-oss": ("GptOss", {**MIXTURE, "head_dim": 64, "sliding_window": 32}, _O200K),
    "mixtral": ("Mixtral", {**MIXTURE, "sliding_window": None}, "sentencepiece"),
    "t5": ("T5", {"d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
                  "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
                  "pad_token_id": 0}, "unigram"),
}  # fmt: skip


def _corpus() -> list[str]:
    """Prose and programs that every Python brings along."""
    text = Path(argparse.__file__).read_text() + Path(textwrap.__file__).read_text()
    return [line for line in text.splitlines() if line.strip()]


def _byte_level(folder: Path, rules: str) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=rules == _LLAMA3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rules), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=["<|begin_of_text|>", "<|end_of_text|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def _sentencepiece(folder: Path, kind: str) -> None:
    import sentencepiece

    (folder / "corpus").write_text("\n".join(_corpus()))
    name = "spiece" if kind == "unigram" else "tokenizer"
    bpe = {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "split_digits": True,
        "remove_extra_whitespaces": False,
    }  # fmt: skip
    options: dict[str, Any] = {
        "unigram": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        "sentencepiece": {**bpe, "unk_id": 0, "bos_id": 1, "eos_id": 2},
        "gemma": {**bpe, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "eos_piece": "<eos>", "bos_piece": "<bos>",
                  "control_symbols": ["<mask>"], "add_dummy_prefix": False},
    }[kind]  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus"), model_prefix=str(folder / name), vocab_size=N_VOCAB,
        minloglevel=2, **options,
    )  # fmt: skip
    (folder / "corpus").unlink()
    (folder / f"{name}.vocab").unlink()
    import transformers

    of_kind = {"unigram": "T5Tokenizer", "gemma": "GemmaTokenizer", "sentencepiece": "LlamaTokenizer"}
    getattr(transformers, of_kind[kind]).from_pretrained(folder, extra_ids=0).save_pretrained(folder)


def make(family: str, folder: Path) -> None:
    import torch
    import transformers

    name, settings, rules = FAMILIES[family]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if rules in {"sentencepiece", "gemma", "unigram"}:
        _sentencepiece(folder, rules)
    else:
        _byte_level(folder, rules)
    sizes = {"vocab_size": N_VOCAB, "eos_token_id": 1} if family == "t5" else SIZES
    ids = {"sentencepiece": (1, 2, 0), "gemma": (2, 1, 0)}.get(rules, (0, 1, 1))
    named = dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), ids, strict=True))
    config = getattr(transformers, f"{name}Config")(**(sizes | ({} if family == "t5" else named) | settings))
    torch.manual_seed(7)
    head = "ForConditionalGeneration" if family == "t5" else "ForCausalLM"
    model = getattr(transformers, name.removesuffix("Text") + head)(config).float()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if parameter.ndim > 1:
                scale = 0.125 if family == "t5" and part.endswith(".q.weight") else 1.0  # it divides nowhere else
                parameter.normal_(0, scale * (parameter.numel() / parameter.shape[0]) ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if family == "gemma4" and part.endswith("q_norm.weight"):
                parameter.mul_(0.125)  # nor does it
    model.save_pretrained(folder)


if __name__ == "__main__":
    for chosen in sys.argv[2:] or FAMILIES:
        make(chosen, Path(sys.argv[1]) / chosen)
