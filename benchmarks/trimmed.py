"""What trimming costs: llama.cpp's default buffers against a plan's, over the same prompts in turn.

    python benchmarks/trimmed.py --target FILE --drafter FILE --prompts FILE [--limit N] [--ctx 4096] [--window 512]

Both sides share the weights. The default side reserves what llama.cpp reserves unless it is told otherwise: batches of
512 with the logits of every row, f16, and the drafter at the target's context; the planned side has rows for one draft,
batches of --ubatch and --draft-ubatch tokens, and a drafter that sees --window tokens. Sizes come from llama.cpp
itself. Prints a JSON object: bytes of both, ratios of decode and prompt speed, tokens a pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgellm.memory.context import ContextSettings, KvType
from edgellm.memory.cpu import usable_cores
from edgellm.memory.plan import PairSettings
from edgellm.runtime import comparison
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.bringup.planning import EngineOptions
from edgellm.runtime.bringup.probe import probe
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.translating import TranslatingDrafter
from edgellm.runtime.engine import Engine
from edgellm.runtime.text.template import DOCUMENT, ChatTemplate

N_DRAFT = 4


def sizes(arguments: argparse.Namespace, kv: KvType) -> dict[str, int]:
    """Bytes beyond the weights of both sides, everything counted that llama.cpp sizes."""
    total = {}
    for side, pair in sides(arguments, kv).items():
        assert pair.drafter is not None
        # Reserved rows stand in the graph's buffer; the one that results are copied to grows to what a draft needs.
        rows = replace(pair.target, n_outputs=N_DRAFT + 1), replace(pair.drafter, n_outputs=1)
        found = probe(arguments.target, [pair.target]) + probe(arguments.drafter, [pair.drafter])
        outputs = probe(arguments.target, [rows[0]]) + probe(arguments.drafter, [rows[1]])
        total[side] = sum(size.kv_bytes + size.compute_bytes for size in found)
        total[side] += sum(size.output_bytes for size in outputs)
    return total


def sides(arguments: argparse.Namespace, kv: KvType) -> dict[str, PairSettings]:
    wide = ContextSettings(arguments.ctx, 512, 512, "f16", n_threads=usable_cores())
    trained = trained_context(arguments.drafter)
    planned = replace(wide, n_ubatch=arguments.ubatch, n_outputs=N_DRAFT + 1, kv=kv)
    own = replace(planned, n_ctx=min(arguments.window, trained), n_ubatch=arguments.draft_ubatch, n_outputs=1)
    own = replace(own, kv=arguments.draft_kv or kv)
    default = PairSettings(wide, N_DRAFT, replace(wide, n_ctx=min(arguments.ctx, trained)))
    return {"default": default, "planned": PairSettings(planned, N_DRAFT, own)}


def trained_context(path: Path) -> int:
    from edgellm.memory.gguf import read_header

    return int(read_header(path).hparam("context_length"))


def engines(arguments: argparse.Namespace) -> dict[str, Engine]:
    models = (
        LlamaModel(arguments.target, ModelOptions(mmap=False)),
        LlamaModel(arguments.drafter, ModelOptions(mmap=False)),
    )
    target, drafter = models
    template = ChatTemplate(target.chat_template, target.vocabulary)
    made: dict[str, Engine] = {}
    for side, pair in sides(arguments, arguments.kv).items():
        assert pair.drafter is not None
        backend = LlamaBackend(target, pair.target)
        own = TranslatingDrafter(
            LlamaBackend(drafter, pair.drafter), drafter.vocabulary, target.vocabulary, template.turn_end
        )
        engine = Engine(
            target, backend, template, EngineOptions(), pair,
            drafter=AdaptiveDrafter(backend, None, model=own, fixed=N_DRAFT),
            draft_template=ChatTemplate(drafter.chat_template or DOCUMENT, drafter.vocabulary), n_draft=N_DRAFT,
        )  # fmt: skip
        made[comparison.PLAIN if side == "default" else side] = engine
    return made


def median_ratio(report: comparison.Report) -> float:
    """Of planned over default decode speed: the median over prompts of what each prompt's fastest runs give."""
    best: dict[tuple[str, str], float] = {}
    for run in report.runs:
        key = run.config, run.prompt.id
        best[key] = max(best.get(key, 0.0), run.stats.n_new / run.decode_s)
    return statistics.median(
        speed / best[comparison.PLAIN, prompt] for (config, prompt), speed in best.items() if config == "planned"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--drafter", type=Path, required=True)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--ubatch", type=int, default=64)
    parser.add_argument("--draft-ubatch", type=int, default=32)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--draft-kv")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"ctx": arguments.ctx, "window": arguments.window, "kv": arguments.kv}
    result["bytes"] = sizes(arguments, arguments.kv)
    result["saved"] = round(1 - result["bytes"]["planned"] / result["bytes"]["default"], 4)
    if arguments.prompts:
        report = comparison.run(
            engines(arguments), comparison.read_prompts(arguments.prompts, arguments.limit),
            max_tokens=arguments.tokens, repeat=arguments.repeat,
        )  # fmt: skip
        both = {side: report.summary(name) for side, name in (("default", comparison.PLAIN), ("planned", "planned"))}
        speed = both["planned"]
        result["decode_ratio_median"] = round(median_ratio(report), 4)
        result["decode_ratio"] = {name: round(speed[name], 4) for name in ("ratio", "ratio_low", "ratio_high")}
        result["prompt_ratio"] = round(speed["prefill_tokens_per_s"] / speed["plain_prefill_tokens_per_s"], 4)
        result["tokens_per_pass"] = {side: round(figures["tokens_per_round"], 4) for side, figures in both.items()}
        result["identical"] = f"{speed['identical']} of {speed['n_prompts']}"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
