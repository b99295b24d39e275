"""Mutated headers, configurations and plans against `edgellm plan` and `edgellm chat --plan`: no traceback, no crash.

    python benchmarks/plan_fuzz.py [--headers 1500] [--configs 500] [--plans 200] [--seed 1] [--real 40]

Commands run in-process in children under a limit of memory; `--real` of each kind run as commands of their own too.
A case fails where it ends in anything but a documented exit code and one sentence, takes 2 s, or 300 MiB.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from raw_gguf import LLAMA, llama_tensors, write_raw  # noqa: E402
from tiny_gguf import write_tiny  # noqa: E402

MOST_S, MOST_BYTES = 2.0, 300 * 2**20
A_CHILD = 100  # cases
WRONG: list[Any] = [
    0, 1, -1, 2**31, ("u64", 2**63), ("u64", 2**64 - 1), ("i64", -(2**63)), True, False, 4.0, math.nan, math.inf, "",
    "4", "x", "a\x1b[31mb", ["a", "b"], [1, 2, 3, 4], [-1, 1, 1, 1], [0], [0.5, 0.5], ("f32", 1e30),
]  # fmt: skip
KEYS = [
    *LLAMA, "attention.key_length", "attention.value_length", "attention.sliding_window", "expert_count",
    "attention.sliding_window_pattern", "expert_used_count", "expert_feed_forward_length", "nextn_predict_layers",
    "full_attention_interval", "attention.recurrent_layers", "shortconv.l_cache", "ssm.inner_size", "ssm.state_size",
    "ssm.group_count", "ssm.conv_kernel", "attention.key_length_mla", "attention.value_length_mla", "vocab_size",
    "attention.key_length_swa", "general.file_type", "general.alignment", "split.count", "split.no",
    "split.tensors.count", "tokenizer.ggml.merges", "edgellm.vocabulary.original_size",
]  # fmt: skip
ARCHITECTURES = [
    "llama", "gemma2", "gemma3", "qwen35", "lfm2", "mamba", "mamba2", "deepseek2", "exaone4", "gpt-oss", "phi3", "x", 7,
]  # fmt: skip
CONFIG: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "hidden_size": 256, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 8192,
    "sliding_window": 512, "num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": True,
}  # fmt: skip
MODEL_TYPES = ["llama", "gemma2", "gemma3_text", "qwen2", "qwen3_moe", "mixtral", "cohere2", "exaone4", "phi3", "x"]
ODD: list[Any] = [
    0, -1, 4.5, 1e308, math.nan, math.inf, 2**31, 10**400, "x", "", None, True, [], [1], {}, {"a": 1}, "\ud800",
]  # fmt: skip


def header(rng: random.Random, folder: Path) -> list[str]:
    path = folder / f"m{rng.random()}.gguf"
    entries: dict[str, Any] = dict(LLAMA)
    for _ in range(rng.randrange(1, 5)):
        key = rng.choice(KEYS)
        if rng.random() < 0.15:
            entries.pop(key, None)
        else:
            entries[key] = rng.choice(WRONG)
    tensors = llama_tensors()
    if rng.random() < 0.2:
        tensors = rng.choice([[], tensors * 2, tensors[: rng.randrange(len(tensors))], [("x", (0, 4), "F16")]])
    write_raw(path, entries, tensors, architecture=rng.choice(ARCHITECTURES), holes=rng.random() < 0.9)
    if rng.random() < 0.4:
        data = bytearray(path.read_bytes()[: 2**16])
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), rng.randbytes(4), rng.randbytes(1)])
        with path.open("r+b") as file:
            file.write(data)
            if rng.random() < 0.3:
                file.truncate(rng.randrange(len(data)))
    return ["plan", str(path), "--draft", "none", "--budget", "8GiB", "--json", "--offline"]


def config(rng: random.Random, folder: Path) -> list[str]:
    there = folder / f"c{rng.random()}"
    there.mkdir(exist_ok=True)
    value: Any = {**CONFIG, "model_type": rng.choice(MODEL_TYPES)}
    for _ in range(rng.randrange(1, 4)):
        key = rng.choice(list(CONFIG))
        if rng.random() < 0.2:
            value.pop(key, None)
        else:
            value[key] = rng.choice(ODD)
    text = json.dumps(rng.choice([value, value, value, value, rng.choice(ODD)]))
    (there / "config.json").write_bytes(flipped(text, rng))
    return ["plan", str(there), "--draft", "none", "--budget", "8GiB", "--json", "--offline"]


def plan(rng: random.Random, folder: Path) -> list[str]:
    path = folder / f"p{rng.random()}.json"
    value = copy.deepcopy(json.loads((folder / "plan.json").read_text()))
    for _ in range(rng.randrange(1, 4)):
        place: Any = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            if rng.random() < 0.2:
                del place[key]
            else:
                place[key] = rng.choice([*ODD, 16, 512, 10**6, 10**12, "q4_0", "mapped"])
            break
        if not value:
            break
    path.write_bytes(flipped(json.dumps(value), rng))
    models = [str(folder / "target.gguf"), "--draft", str(folder / "draft.gguf")] if rng.random() < 0.5 else []
    return running(path, *models)


def running(path: Path, *models: str) -> list[str]:
    return ["chat", *models, "--plan", str(path), "-p", "the hat", "-n", "2", "--json", "--offline", "--no-learn"]


def flipped(text: str, rng: random.Random) -> bytes:
    """The text, one in five with a byte changed or its end cut off."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    kind = rng.randrange(10)
    if kind == 0:
        data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


KINDS: dict[str, Callable[[random.Random, Path], list[str]]] = {"headers": header, "configs": config, "plans": plan}


def judged(arguments: list[str]) -> dict[str, Any]:
    """Run a command in this process: its exit code, what is wrong with it, and its time."""
    from edgellm.cli.main import main

    sys.argv = ["edgellm", *arguments]
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    started, wrong, code = time.process_time(), None, 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:  # whatever it is, it is what is looked for
        wrong = f"{type(error).__name__}: {error}"[:300]
    seconds = time.process_time() - started
    err.seek(0)
    said = err.read()
    if wrong is None and code not in (0, 1, 2, 3):
        wrong = f"exit {code}"
    if wrong is None and code in (1, 3) and said.count("error:") != 1:
        wrong = f"no sentence: {said[-200:]!r}"
    if wrong is None and seconds > MOST_S:
        wrong = f"{seconds:.1f} s"
    return {"code": code, "wrong": wrong, "seconds": seconds}


def child(kind: str, first: int, n: int, seed: int, folder: Path) -> None:
    """Cases of one kind, an answer a line; the parent sees where a crash was."""
    import resource

    import psutil

    answers = os.fdopen(os.dup(1), "w")
    if kind == "plans":
        judged(running(folder / "plan.json"))  # loads the engine and times its passes, once
    else:
        judged(["plan", str(folder / "target.gguf"), "--draft", "none", "--budget", "1GiB"])
        limit = psutil.Process().memory_info().vms + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for index in range(first, first + n):
        arguments = KINDS[kind](random.Random(f"{kind} {seed} {index}"), folder)
        answers.write(json.dumps({"index": index, "arguments": arguments, **judged(arguments)}) + "\n")
        answers.flush()


def run(kind: str, n: int, seed: int, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    found: list[dict[str, Any]] = []
    failures: list[str] = []
    while len(found) < n:
        words = [kind, str(len(found)), str(min(A_CHILD, n - len(found))), str(seed), str(folder)]
        done = subprocess.run([sys.executable, __file__, "--child", *words], capture_output=True, text=True)
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"index"')]
        found += answers
        failures += [f"{kind} {answer['index']}: {answer['wrong']}" for answer in answers if answer["wrong"]]
        if done.returncode or not answers:
            failures.append(f"{kind} {len(found)}: the child ended with {done.returncode}: {done.stderr[-300:]}")
            found.append({"index": len(found), "code": done.returncode, "seconds": 0.0, "wrong": "crash"})
    return found, failures


def as_commands(kind: str, n: int, seed: int, folder: Path) -> list[str]:
    """A sample through the real command."""
    failures = []
    for index in range(n):
        arguments = KINDS[kind](random.Random(f"{kind} {seed} {index}"), folder)
        done = subprocess.run([sys.executable, "-m", "edgellm.cli", *arguments], capture_output=True, text=True)
        if done.returncode not in (0, 1, 2, 3) or "Traceback" in done.stderr:
            failures.append(f"{kind} {index} as a command: {done.returncode} {done.stderr[-300:]}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, n in (("headers", 1500), ("configs", 500), ("plans", 200), ("real", 40)):
        parser.add_argument(f"--{kind}", type=int, default=n)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EDGELLM_HOME"] = str(folder / "home")
        sizes = {"n_embd": 128, "n_layers": 2, "n_ctx_train": 4096}
        target, draft = (write_tiny(folder / f"{role}.gguf", **sizes) for role in ("target", "draft"))
        command = [sys.executable, "-m", "edgellm.cli", "plan", str(target), "--draft", str(draft), "--ctx", "512"]
        subprocess.run([*command, "--save", str(folder / "plan.json")], check=True, capture_output=True)
        for kind in KINDS:
            n = getattr(arguments, kind)
            found, wrong = run(kind, n, arguments.seed, folder)
            wrong += as_commands(kind, min(arguments.real, n), arguments.seed, folder)
            codes = dict(sorted(Counter(answer["code"] for answer in found).items()))
            slowest = max((answer["seconds"] for answer in found), default=0.0)
            print(f"{kind}: {n} cases, {len(wrong)} failures, exit codes {codes}, slowest {slowest:.2f} s", flush=True)
            failures += wrong
    print("\n".join(failures[:40]))
    return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind_, first_, n_, seed_, folder_ = sys.argv[2:]
        child(kind_, int(first_), int(n_), int(seed_), Path(folder_))
    else:
        sys.exit(main())
