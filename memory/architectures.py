"""What is known of architectures, by GGUF's names: which layers keep a cache, windows, states. As llama.cpp has it."""

from __future__ import annotations

from dataclasses import dataclass

# Every layer attends and keeps its keys and values.
PLAIN = {
    "llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi3", "gemma", "smollm3", "granite", "granitemoe",
    "starcoder2", "internlm2", "command-r", "exaone", "glm4", "ernie4_5", "hunyuan-dense", "olmoe", "seed_oss", "arcee",
    "stablelm",
}  # fmt: skip
# An encoder reads the prompt at once; the decoder attends to what it made of it, and keeps a cache of its own text.
ENCODER_DECODER = {"t5"}
# One latent row a token instead of keys and values.
LATENT = {"deepseek2"}
# A state of fixed size in all layers, or in those that do not attend.
RECURRENT = {"mamba", "mamba2"}
HYBRID = {"lfm2", "lfm2moe", "granitehybrid", "qwen35", "qwen35moe", "qwen3next", "falcon-h1", "nemotron_h"}
MAMBA_2 = {"mamba2", "granitehybrid", "falcon-h1", "nemotron_h"}  # whose recurrent layers are Mamba 2's
BESIDE = {"falcon-h1"}  # of these: every layer attends, and keeps a state beside
# llama.cpp can keep snapshots of the state of these, so that rejected tokens can be taken back.
REWINDABLE = {"lfm2", "lfm2moe", "qwen35", "qwen35moe", "nemotron_h"}
# Full attention in one layer of so many, unless the file says otherwise.
FULL_ATTENTION_INTERVAL = {"qwen35": 4, "qwen35moe": 4, "qwen3next": 4}
# A layer that has a feed-forward part has neither cache nor state.
FEED_FORWARD_APART = {"nemotron_h"}
# Layers behind so many attend to the keys and values of earlier ones, whatever the file says.
LAYERS_WITH_CACHE = {"gemma3n": 20}
# Files of these say how many of the last layers do so.
SHARED_CACHE = {"gemma4"}
# Where the window slides heads may have another width; of others llama.cpp ignores what the file says.
WINDOW_HEADS = {"gemma4"}
# Without an output matrix these read the embedding twice, unless it is mapped from the file.
EMBEDDING_TWICE = {"gemma3n", "gemma4"}
# Each layer is computed for so many streams of states side by side.
STREAMS = {"gemma3n": 4}
# llama.cpp runs a draft head (MTP) that lies behind the layers of these, and tests have seen it draft.
DRAFT_HEADS = {"qwen35", "qwen35moe"}
FUSED_QKV = {"phi3"}
FUSED_GATE = {"phi3", "glm4"}  # one matrix of twice the width
NO_GATE = {"starcoder2", "arcee"}


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How llama.cpp gives layers a sliding window.

    A layer slides unless it is the last of `every`; the file may list layers or name another group size. 0: all slide.
    """

    every: int
    default: int | None = 0  # tokens, where the file names no window. 0: then no layer slides; None: it must name one
    n_layers: int | None = None  # only models of so many layers have windows, whatever the file says


WINDOWS = {
    "gemma2": WindowRule(2, default=4096),
    "gemma3": WindowRule(6),
    "gemma3n": WindowRule(5, default=None),
    "gemma4": WindowRule(1, default=None),  # the file lists the layers
    "cohere2": WindowRule(4, default=None),
    "exaone4": WindowRule(4, default=4096, n_layers=64),
    "olmo2": WindowRule(4),
    "gpt-oss": WindowRule(2, default=None),
    "lfm2": WindowRule(0),
}

# config.json's `model_type` -> the name in GGUF
MODEL_TYPES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3",
    "smollm3": "smollm3",
    "granite": "granite", "starcoder2": "starcoder2", "internlm2": "internlm2", "cohere": "command-r",
    "cohere2": "cohere2", "exaone4": "exaone4", "olmo2": "olmo2", "glm4": "glm4", "stablelm": "stablelm",
}  # fmt: skip


def is_known(architecture: str) -> bool:
    """Whether the layout of its cache is known here."""
    return architecture in PLAIN | ENCODER_DECODER | LATENT | RECURRENT | HYBRID or architecture in WINDOWS


def slides(rule: WindowRule, layer: int, every: int | None = None) -> bool:
    """Whether a layer has the window, where the file lists none. `every`: the file's own group size."""
    every = rule.every if every is None else every
    return every == 0 or layer % every < every - 1
