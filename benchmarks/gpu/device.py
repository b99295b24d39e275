"""One short run that says what a GPU machine does with us: devices, bits, curves, drafting, memory against plans.

    python benchmarks/gpu/device.py TARGET.gguf --draft DRAFT.gguf [--more TARGET.gguf ...] [--device Vulkan0]
        [--prompts FILE] [--n-prompts 6] [--tokens 64] [--widest 16] [--part-s 90] --out FOLDER

Needs llama.cpp built for the device (docs/gpu.md). Each part runs in a process of its own, so that one that the driver
ends leaves the others; all of it takes under ten minutes on a discrete GPU. Writes FOLDER/device.json and device.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

N_CURVE_CTX, N_FILLED, N_REPEAT = 1024, 256, 7
SHOWN = (1, 2, 4, 8, 16)  # widths in the table
QUESTIONS = (
    "Write a Python function that merges two sorted lists, and explain how long it takes.",
    "Why is the sky blue? Answer in three sentences.",
    "Rewrite this more politely: Send me the report now, I have waited long enough.",
    "List five things to check before a bicycle tour, one a line.",
    "Tom has 12 apples, gives a third away and buys 7 more. How many has he? Think step by step.",
    "Write a haiku about a lighthouse, then say what it means.",
)


def devices(_: argparse.Namespace) -> dict[str, Any]:
    from edgellm.app.machine import machine
    from edgellm.runtime.backends.llama_process import accelerators, kernels

    found = accelerators()
    return {
        "machine": machine(),
        "kernels": asdict(kernels()),
        "accelerators": [asdict(each) for each in found],
    }


def curve(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of passes of 1 to `widest` tokens behind 256, and which widths agree with single tokens in every bit."""
    from edgellm.runtime.bringup.exactness import rows_at_width
    from edgellm.runtime.bringup.load import load

    began = time.monotonic()
    with load(arguments.target, None, _options(arguments, n_ctx=N_CURVE_CTX)) as engine:
        load_s = time.monotonic() - began
        backend = engine.backend
        rng = np.random.default_rng(0)
        tokens = [int(token) for token in rng.integers(0, min(backend.n_vocab, 20_000), N_FILLED + 64)]
        widths = range(1, min(arguments.widest, backend.max_outputs) + 1)
        backend.forward(tokens[:N_FILLED], n_outputs=0)
        seconds: dict[int, list[float]] = {n: [] for n in widths}
        for _ in range(N_REPEAT + 1):  # the first compiles
            for n in widths:
                began = time.perf_counter()
                backend.forward(tokens[N_FILLED : N_FILLED + n], n_outputs=n)
                seconds[n].append(time.perf_counter() - began)
                backend.truncate(N_FILLED)
        prefix, probe = tokens[:8], tokens[8 : 8 + arguments.n_probe]
        single = rows_at_width(backend, prefix, probe, 1)
        bits = []
        for n in widths:
            rows = rows_at_width(backend, prefix, probe, n)
            bits.append({
                "width": n,
                "equal": bool(np.array_equal(rows, single)),
                "class": zlib.crc32(rows.tobytes()),
                "largest": float(np.abs(rows - single).max()),
                "flips": int((rows.argmax(1) != single.argmax(1)).sum()),
            })  # fmt: skip
        began = time.perf_counter()
        backend.truncate(0)
        backend.forward(tokens[:N_FILLED], n_outputs=0)
        return {
            "load_s": load_s,
            "prefill_tokens_per_s": N_FILLED / (time.perf_counter() - began),
            "pass_ms": {n: 1e3 * statistics.median(times[1:]) for n, times in seconds.items()},
            "placed": engine.settings.target.placed,
            "bits": bits,
            "n_probe": len(probe),
        }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a plan says of the device and of this process, and what the driver and the system say of them."""
    from edgellm.runtime.backends.llama_process import accelerators
    from edgellm.runtime.bringup.calibrate import peak_bytes
    from edgellm.runtime.bringup.load import load

    def free() -> int:
        return next((each.free_bytes for each in accelerators() if each.name == arguments.device), 0)

    free_bytes, card_bytes = free(), _card_used_bytes()
    with load(arguments.target, arguments.draft, _options(arguments, n_ctx=arguments.ctx)) as engine:
        plan = engine.plan
        assert plan is not None
        backend = engine.backend
        rng = np.random.default_rng(0)
        backend.forward([int(token) for token in rng.integers(0, 20_000, 300)], n_outputs=0)
        backend.truncate(0)
        engine.generate(QUESTIONS[0], max_tokens=24).finish()
        return {
            "n_ctx": engine.settings.target.n_ctx,
            "planned_device_bytes": plan.device_bytes(arguments.device),
            "planned_process_bytes": plan.process_bytes,
            "driver_device_bytes": free_bytes - free(),
            "card_device_bytes": _card_used_bytes() - card_bytes,
            "peak_process_bytes": peak_bytes(),
            "lines": [asdict(line) for line in plan.lines],
        }


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plain and drafted decoding in turn: the target on the device, the drafter on another or there too."""
    from edgellm.runtime import comparison
    from edgellm.runtime.bringup.load import load, with_drafter

    prompts = [comparison.Prompt(str(i), "own", (text,)) for i, text in enumerate(QUESTIONS)]
    if arguments.prompts:
        prompts = comparison.read_prompts(arguments.prompts)
    prompts = prompts[: arguments.n_prompts]
    with load(arguments.target, arguments.draft, _options(arguments, n_ctx=2048)) as engine:
        plain = with_drafter(engine, None, copy=False, options=_options(arguments, n_ctx=2048, learn="off"))
        report = comparison.run({comparison.PLAIN: plain, "drafted": engine}, prompts, max_tokens=arguments.tokens)
        settings = engine.settings
        return {
            **report.summary("drafted"),
            "placed": [settings.target.placed, settings.drafter.placed if settings.drafter else None],
            "noise": report.noise,
            "notes": [*engine.notes, *engine.warnings],
            "explained": engine.controller.explain() if engine.controller is not None else "",
            "differences": [asdict(each) for each in report.differences.values()],
        }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "devices": devices, "curve": curve, "memory": memory, "speed": speed,
}  # fmt: skip


def _options(arguments: argparse.Namespace, **more: Any) -> Any:
    from edgellm.runtime.bringup.planning import EngineOptions

    chosen = {
        "main_device": arguments.device, "draft_device": arguments.draft_device, "learn": "fresh",
        "ahead": not arguments.not_ahead, "exact": arguments.exact,
    }  # fmt: skip
    return EngineOptions(**(chosen | more))


def _card_used_bytes() -> int:
    """By NVIDIA's own tool; 0 where there is none."""
    try:
        asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def run_part(part: str, arguments: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """A part's figures; its last words where it failed."""
    command = [sys.executable, __file__, "--part", part, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {timeout_s:g} s"}
    if done.returncode:
        return {"failed": f"ended with {done.returncode}: {done.stderr.strip()[-600:]}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def jobs(arguments: argparse.Namespace) -> list[tuple[str, str, list[str]]]:
    """(title, part, arguments), the cheap ones first."""
    common = ["--widest", str(arguments.widest), "--n-probe", str(arguments.n_probe)]
    talk = ["--n-prompts", str(arguments.n_prompts), "--tokens", str(arguments.tokens)]
    talk += ["--prompts", str(arguments.prompts)] if arguments.prompts else []
    device = arguments.device
    listed: list[tuple[str, str, list[str]]] = [("devices", "devices", [str(arguments.target)])]
    targets = [arguments.target, *arguments.more]
    for target in (arguments.draft, *targets):
        for where in (device, "cpu"):
            listed.append((f"curve: {target.stem} on {where}", "curve", [str(target), "--device", where, *common]))
    for target in targets:
        for where, how in ((device, []), ("cpu", []), ("cpu", ["--not-ahead"]), ("cpu", ["--exact"])):
            own = [str(target), "--draft", str(arguments.draft), "--device", device, "--draft-device", where]
            title = f"speed: {target.stem} on {device}, {arguments.draft.stem} on {where} {' '.join(how)}"
            listed.append((title.rstrip(), "speed", [*own, *talk, *how]))
    for target in targets:
        for ctx in (1024, 4096, 8192):
            own = [str(target), "--draft", str(arguments.draft), "--device", device, "--draft-device", device]
            listed.append((f"memory: {target.stem}, {ctx:,} tokens", "memory", [*own, "--ctx", str(ctx)]))
    return listed


def page(results: dict[str, dict[str, Any]], device: str) -> str:
    """The figures as Markdown."""
    lines = _head("passes behind 256 tokens, ms", "load, s", *(f"t({n})" for n in SHOWN), "prompt, tokens/s",
                  "widths of the same bits", "flips")  # fmt: skip
    for title, it in results.items():
        if title.startswith("curve") and "failed" not in it:
            ms = {int(n): value for n, value in it["pass_ms"].items()}
            cells = [f"{ms[n]:.2f}" if n in ms else "" for n in SHOWN]
            classes: dict[int, list[int]] = {}
            for each in it["bits"]:
                classes.setdefault(each["class"], []).append(each["width"])
            same = "; ".join(f"{ns[0]} to {ns[-1]}" if len(ns) > 1 else str(ns[0]) for ns in classes.values())
            flips = sum(each["flips"] for each in it["bits"])
            lines.append(
                f"| {title[7:]} | {it['load_s']:.1f} | {' | '.join(cells)} | {it['prefill_tokens_per_s']:.0f} | {same} "
                f"| {flips} of {len(it['bits']) * it['n_probe']} |"
            )
    lines += ["", *_head("drafting", "plain, tokens/s", "drafted", "ratio", "tokens a round", "same answers",
                         "largest gap, noise")]  # fmt: skip
    for title, it in results.items():
        if title.startswith("speed") and "failed" not in it:
            gap = max((each["gap"] for each in it["differences"]), default=0.0)
            lines.append(
                f"| {title[7:]} | {it['plain_tokens_per_s']:.1f} | {it['tokens_per_s']:.1f} | {it['ratio']:.2f} "
                f"({it['ratio_low']:.2f} to {it['ratio_high']:.2f}) | {it['tokens_per_round']:.2f} "
                f"| {it['identical']} of {it['n_prompts']} | {gap:.3f}, {it['noise'] or 0:.3f} |"
            )
    lines += ["", *_head("memory, MiB", f"{device}: planned", "driver says", "card says", "process: planned", "peak")]
    for title, it in results.items():
        if title.startswith("memory") and "failed" not in it:
            keys = ("planned_device", "driver_device", "card_device", "planned_process", "peak_process")
            cells = [f"{it[f'{key}_bytes'] / 2**20:.0f}" for key in keys]
            lines.append(f"| {title[8:]} | {' | '.join(cells)} |")
    failed = [f"- {title}: {it['failed']}" for title, it in results.items() if "failed" in it]
    return "\n".join([*lines, "", *failed]) + "\n"


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--draft", type=Path, help="required but for a single part")
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    parser.add_argument("--device", default="Vulkan0")
    parser.add_argument("--draft-device", default="cpu")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--n-prompts", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--widest", type=int, default=16)
    parser.add_argument("--n-probe", type=int, default=48)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--part-s", type=float, default=90.0, help="seconds, after which a part is given up")
    parser.add_argument("--not-ahead", action="store_true", help="of speed: draft only when the target is done")
    parser.add_argument("--exact", action="store_true", help="of speed: widths that agree bit for bit alone")
    parser.add_argument("--only", help="parts of these names alone, with commas between")
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for title, part, own in jobs(arguments):
        if arguments.only and part not in arguments.only.split(","):
            continue
        began = time.monotonic()
        results[title] = run_part(part, own, arguments.part_s)
        said = results[title].get("failed", "done")
        print(f"{time.monotonic() - began:6.1f} s  {title}: {said}", file=sys.stderr, flush=True)
        (out / "device.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    text = page(results, arguments.device)
    (out / "device.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
