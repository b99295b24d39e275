"""Tiny random checkpoints and their logits, as transformers has both; runs in the environment that has transformers.

One line of JSON asks, one answers, until there are no more: `python transformers_child.py`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

MAX_WEIGHTS = 30_000_000


def made(job: dict[str, Any]) -> dict[str, Any]:
    """Weights for the config.json in `folder`, saved as the job says, and the logits of a random text in logits.npy."""
    folder = Path(job["folder"])
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        n_weights = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if n_weights > MAX_WEIGHTS:
        return {"refused": f"{n_weights} weights are no tiny model"}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    randomise(model, job["seed"])
    weights = dict(model.state_dict())
    tied = weights.get("lm_head.weight") is not None and bool(getattr(config, "tie_word_embeddings", False))
    embedding = next(name for name in weights if name.endswith("embed_tokens.weight"))
    if tied and job["head"] != "same":
        del weights["lm_head.weight"]
    if job["head"] == "own":
        generator = torch.Generator().manual_seed(7)
        weights["lm_head.weight"] = torch.randn(weights[embedding].shape, generator=generator) * 0.1
    dtypes = {name: getattr(torch, job["dtype"]) for name in weights}
    if job["dtype"] == "mixed":
        dtypes = {name: torch.bfloat16 if "mlp" in name else torch.float16 for name in weights}
    weights = {name: weight.detach().to(dtypes[name]).contiguous().clone() for name, weight in weights.items()}
    if job["prefix"]:
        prefix = "" if job["prefix"] == "<none>" else job["prefix"]
        weights = {renamed(name, prefix): weight for name, weight in weights.items()}
    save(folder, weights, job["n_shards"], job["format"])
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        return {"refused": f"transformers makes up {sorted(map(str, info['missing_keys']))[:2]}"}
    tokens = np.random.default_rng(job["seed"]).integers(0, 256, job["n_tokens"])
    with torch.no_grad():
        logits = loaded.eval()(torch.tensor(tokens)[None]).logits[0].float().numpy()
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "logits.npy", logits)
    return {"n_weights": n_weights}


def renamed(name: str, prefix: str) -> str:
    old = "model.language_model." if name.startswith("model.language_model.") else "model."
    return prefix + name.removeprefix(old) if name.startswith(old) else name


def randomise(model: Any, seed: int) -> None:
    """Weights at which every part of a layer counts: attention that chooses, norms that are not 1."""
    generator = torch.Generator().manual_seed(seed + 1)
    gemma = "Gemma" in type(model).__name__
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                middle = 0.0 if name.endswith("bias") or gemma else 1.0
                weight.copy_(middle + 0.2 * noise)
            else:
                scale = 0.7 / weight[0].numel() ** 0.5
                if "q_proj" in name or "k_proj" in name or "qkv" in name:
                    scale *= 2.5
                weight.copy_((1.0 if "embed_tokens" in name else scale) * noise)
            weight.copy_(weight.half().float())


def save(folder: Path, weights: dict[str, Any], n_shards: int, kind: str) -> None:
    suffix = {"safetensors": "safetensors", "bin": "bin"}[kind]
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    names = list(weights)
    weight_map = {}
    for shard in range(n_shards):
        part = {name: weights[name] for name in names[shard::n_shards]}
        file = f"{stem}.{suffix}" if n_shards == 1 else f"{stem}-{shard + 1:05}-of-{n_shards:05}.{suffix}"
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if n_shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def tokenizer(job: dict[str, Any]) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent))
    from tokenizer_makers import cut

    return cut(job)


JOBS = {"made": made, "tokenizer": tokenizer}

if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = JOBS[request["job"]](request)
        except Exception as error:
            traceback.print_exc()
            answer = {"refused": f"{type(error).__name__}: {str(error)[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
