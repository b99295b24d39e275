"""Hub folders for tests: tiny random models of every family, and real ones rebuilt from a GGUF file by dequantising."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vocabularies import FILES, tokenizer_folder

Weights = dict[str, NDArray[Any]]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG_ROPE = {
    "type": "longrope",
    "short_factor": [1.0 + 0.01 * i for i in range(8)],
    "long_factor": [2.0 + 0.1 * i for i in range(8)],
}
# Family -> (architecture, tokenizer, what its config.json adds)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "llama2", {}),
    "llama-biased": ("LlamaForCausalLM", "llama2", {"attention_bias": True, "tie_word_embeddings": True}),
    "llama3": ("LlamaForCausalLM", "llama3", {"rope_theta": 500000.0, "rope_scaling": LLAMA3_ROPE}),
    "mistral": ("MistralForCausalLM", "llama2", {"head_dim": 24, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", "qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 32, "rope_theta": 1e6}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "gemma3",
        {
            "head_dim": 32, "sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 32, "model_type": "gemma2",
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "gemma3",
        {
            "head_dim": 32, "sliding_window": 8, "rope_local_base_freq": 10000.0, "rope_theta": 1e6,
            "query_pre_attn_scalar": 32, "model_type": "gemma3_text", "num_hidden_layers": 7,
        },
    ),
    "phi3": (
        "Phi3ForCausalLM",
        "llama2",
        {"rope_scaling": LONG_ROPE, "original_max_position_embeddings": 256, "max_position_embeddings": 1024},
    ),
}  # fmt: skip


_AS_IT_IS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)  # how an added token is looked for


def small_tokenizer(folder: Path, *, n_words: int = 300) -> int:
    """A byte-level tokenizer of a few hundred tokens as Hub files; returns its number of tokens."""
    from edgellm.memory.byte_encoder import byte_alphabet

    vocab = {sign: token for token, sign in enumerate(byte_alphabet())}
    merges = []
    signs = "etaoinshrdlucmfw"
    for left in ["Ġ", *signs]:
        for right in signs:
            if len(vocab) < n_words:
                vocab[left + right] = len(vocab)
                merges.append(f"{left} {right}")
    end = len(vocab)
    document = {
        "added_tokens": [{"id": end, "content": "<|end|>", "special": True, **_AS_IT_IS}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "normalizer": None,
        "post_processor": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return end + 1


def config_of(family: str, n_vocab: int) -> dict[str, Any]:
    architecture, _, extra = FAMILIES[family]
    return {
        "architectures": [architecture],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "vocab_size": n_vocab,
        **extra,
    }


def random_weights(config: Mapping[str, Any], seed: int = 0, scale: float = 0.5) -> Weights:
    """Every tensor that the configuration asks for, float32."""
    rng = np.random.default_rng(seed)
    n_embd, n_ff, n_heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    n_kv, dim = config["num_key_value_heads"], config.get("head_dim") or n_embd // n_heads
    kind = config["architectures"][0]

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return (rng.standard_normal((rows, columns), np.float32) * np.float32(scale / np.sqrt(columns))).astype(
            np.float32
        )

    def vector(n: int, middle: float) -> NDArray[np.float32]:
        return (middle + 0.1 * rng.standard_normal(n, np.float32)).astype(np.float32)

    one = 0.0 if kind.startswith("Gemma") else 1.0
    weights: Weights = {
        "model.embed_tokens.weight": matrix(config["vocab_size"], n_embd) * 4,
        "model.norm.weight": vector(n_embd, one),
    }
    if not config.get("tie_word_embeddings") and not kind.startswith("Gemma"):
        weights["lm_head.weight"] = matrix(config["vocab_size"], n_embd)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        widths = {"q": n_heads * dim, "k": n_kv * dim, "v": n_kv * dim}
        if kind == "Phi3ForCausalLM":
            weights[f"{at}self_attn.qkv_proj.weight"] = matrix(sum(widths.values()), n_embd)
            weights[f"{at}mlp.gate_up_proj.weight"] = matrix(2 * n_ff, n_embd)
        else:
            for name, width in widths.items():
                weights[f"{at}self_attn.{name}_proj.weight"] = matrix(width, n_embd) * 3
                if config.get("attention_bias"):
                    weights[f"{at}self_attn.{name}_proj.bias"] = vector(width, 0.0)
            weights[f"{at}mlp.gate_proj.weight"] = matrix(n_ff, n_embd)
            weights[f"{at}mlp.up_proj.weight"] = matrix(n_ff, n_embd)
        weights[f"{at}self_attn.o_proj.weight"] = matrix(n_embd, n_heads * dim)
        if config.get("attention_bias") and kind == "LlamaForCausalLM":
            weights[f"{at}self_attn.o_proj.bias"] = vector(n_embd, 0.0)
        weights[f"{at}mlp.down_proj.weight"] = matrix(n_embd, n_ff)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if kind.startswith("Gemma"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for norm in norms:
            weights[f"{at}{norm}.weight"] = vector(n_embd, one)
        if kind in {"Qwen3ForCausalLM", "Gemma3ForCausalLM"}:
            for name in "qk":
                weights[f"{at}self_attn.{name}_norm.weight"] = vector(dim, one)
    return weights


def tiny_model(
    folder: Path, family: str, *, real_tokenizer: bool = False, dtype: str = "F32", n_shards: int = 1
) -> Path:
    """A random model of `family` as a Hub folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if real_tokenizer:
        name = FAMILIES[family][1]
        for file in FILES:
            (folder / file).write_bytes((tokenizer_folder(name) / file).read_bytes())
        n_vocab = {"llama2": 32_000, "llama3": 128_256, "qwen3": 151_936, "gemma3": 262_144}[name]
    else:
        n_vocab = small_tokenizer(folder) + 3
    config = config_of(family, n_vocab)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder, random_weights(config), dtype=dtype, n_shards=n_shards)
    return folder


def encoded(array: NDArray[Any], dtype: str) -> bytes:
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, "<f4").view("<u4")
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").data)
    return np.ascontiguousarray(array, {"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_weights(folder: Path, weights: Weights, *, dtype: str = "F32", n_shards: int = 1) -> None:
    """`model.safetensors`, or shards with an index."""
    names = list(weights)
    if n_shards == 1:
        write_safetensors(folder / "model.safetensors", weights, dtype=dtype)
        return
    weight_map = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05}-of-{n_shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::n_shards]}
        write_safetensors(folder / file, part, dtype=dtype)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_safetensors(path: Path, weights: Weights, *, dtype: str = "F32") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data, offset = [], 0
    for name, array in weights.items():
        data.append(encoded(array, dtype))
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(data[-1])]}
        offset += len(data[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


class _Global:
    """Something that pickles as `module.name`, without that module being there."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Call:
    def __init__(self, function: _Global, arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments


class _Stored:
    def __init__(self, reference: tuple[Any, ...]) -> None:
        self.reference = reference


class _TorchPickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes what `torch.save` writes, without torch."""

    def persistent_id(self, value: object) -> object:
        return value.reference if isinstance(value, _Stored) else None

    def save(self, value: object, *arguments: Any, **options: Any) -> None:
        if isinstance(value, _Global):
            self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, _Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(b"R")
        else:
            super().save(value, *arguments, **options)


def write_torch(path: Path, weights: Weights, *, dtype: str = "F16", root: str = "archive") -> None:
    """A `.bin` as `torch.save` leaves it: a zip of a pickled table and one member a storage."""
    import io

    kind = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}[dtype]
    table: dict[str, Any] = {}
    members = []
    for number, (name, array) in enumerate(weights.items()):
        strides = [1]
        for extent in reversed(array.shape[1:]):
            strides.insert(0, strides[0] * extent)
        reference = ("storage", _Global("torch", kind), str(number), "cpu", int(array.size))
        hooks = _Call(_Global("collections", "OrderedDict"), ())
        table[name] = _Call(
            _Global("torch._utils", "_rebuild_tensor_v2"),
            (_Stored(reference), 0, tuple(array.shape), tuple(strides), False, hooks),
        )
        members.append((f"{root}/data/{number}", encoded(array, dtype)))
    buffer = io.BytesIO()
    _TorchPickler(buffer, 2).dump(table)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", buffer.getvalue())
        for member, data in members:
            archive.writestr(member, data)
        archive.writestr(f"{root}/version", b"3\n")


_HUB_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_SPLITS = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
    "qwen2": [
        {
            "type": "Split",
            "pattern": {
                "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            },
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}


def hub_folder_of(gguf_path: Path, folder: Path, *, dtype: str = "F16") -> Path:
    """A Hub folder as a model's authors publish it, rebuilt from a GGUF file of a Llama or Qwen 2 by dequantising."""
    import gguf

    from edgellm.memory.gguf import read_header

    header = read_header(gguf_path)
    arch, folder_name = header.architecture, {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    names = {tensor.name for tensor in header.tensors}
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [text.decode() for text in header.array("tokenizer.ggml.tokens")]
    config = {
        "architectures": [folder_name[arch]],
        "model_type": arch,
        "hidden_size": header.hparam("embedding_length"),
        "intermediate_size": header.hparam("feed_forward_length"),
        "num_hidden_layers": header.hparam("block_count"),
        "num_attention_heads": header.hparam("attention.head_count"),
        "num_key_value_heads": header.hparam("attention.head_count_kv"),
        "rms_norm_eps": header.hparam("attention.layer_norm_rms_epsilon"),
        "rope_theta": header.hparam("rope.freq_base"),
        "max_position_embeddings": header.hparam("context_length"),
        "vocab_size": len(tokens),
        "tie_word_embeddings": "output.weight" not in names,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer_of(header, tokens, folder)
    weights: Weights = {}
    for tensor in header.tensors:
        kind = gguf.GGMLQuantizationType[tensor.type]
        raw = np.fromfile(gguf_path, np.uint8, tensor.n_bytes, offset=header.data_offset + tensor.offset)
        shape = tuple(reversed(tensor.shape))
        array = gguf.quants.dequantize(raw.reshape(*shape[:-1], -1), kind).astype(np.float32).reshape(shape)
        stem, _, suffix = tensor.name.rpartition(".")
        if stem in {"token_embd", "output_norm", "output"}:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[stem]
        else:
            _, layer, part = stem.split(".")
            if arch == "llama" and part in {"attn_q", "attn_k"}:
                n_heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
                array = array.reshape(n_heads, shape[0] // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(shape)
            name = f"model.layers.{layer}.{_HUB_NAMES[part]}"
        weights[f"{name}.{suffix}"] = array
    write_weights(folder, weights, dtype=dtype)
    return folder


def _write_tokenizer_of(header: Any, tokens: list[str], folder: Path) -> None:
    types = header.array("tokenizer.ggml.token_type")
    added = [
        {"id": token, "content": text, "special": kind == 3, **_AS_IT_IS}
        for token, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in {3, 4}
    ]
    last = max(token for token, kind in enumerate(types) if kind == 1)
    document = {
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[header.metadata["tokenizer.ggml.pre"]]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            # Control tokens among the others are in the vocabulary too: libraries number the rest from its end.
            "vocab": {
                text: token
                for token, text in enumerate(tokens)
                if types[token] != 5 and (types[token] not in {3, 4} or token < last)
            },
            "merges": [merge.decode() for merge in header.array("tokenizer.ggml.merges")],
        },
    }
    ids = {name: header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    settings = {f"{name}_token": tokens[token] for name, token in ids.items() if token is not None}
    settings |= {"chat_template": header.metadata.get("tokenizer.chat_template"), "add_bos_token": False}
    for name, document_ in (("tokenizer.json", document), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(document_, ensure_ascii=False), encoding="utf-8")
