"""What every architecture is held to: drafts that err change nothing, what is rejected is taken back, turns go on.

Used by `tests/runtime/test_families.py` with small numbers and by `benchmarks/families.py` with those of its tables.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tiny_gguf import ARCHITECTURES, byte_symbols, write_tiny

from edgellm.memory.buffers import work_bytes
from edgellm.memory.context import ContextSettings
from edgellm.memory.gguf import read_header
from edgellm.memory.plan import Limit, PairSettings, plan
from edgellm.memory.shape import from_header
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.backends.llama_process import kernels
from edgellm.runtime.bringup import probe
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import Draft, NoDrafter
from edgellm.runtime.engine import Engine
from edgellm.runtime.sampling import GREEDY, Sampling

# Layers without a cache of their own begin with the 21st of a Gemma 3n.
SIZES: dict[str, dict[str, Any]] = {"gemma3n": {"n_layers": 24}, "gemma4": {"n_layers": 8}}
TAGS = ("<think>", "</think>")
THINKS = (  # a prompt opens the thought, later prompts leave it out
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
N_DRAFT = 8
WRONG = 0.25  # of the drafted tokens
VARIED = Sampling(repeat_penalty=3.0)  # a tiny random model says one thing over and over otherwise
_LETTERS = {*map(ord, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz .,")}
# Their tokens are those of `byte_symbols`: an answer of letters is written in the next prompt as it was said.
SPELLED = Sampling(
    repeat_penalty=3.0,
    logit_bias=tuple((i, -100.0) for i, c in enumerate(byte_symbols() + [""] * 64) if c not in set(map(chr, _LETTERS))),
)


def write(folder: Path, architecture: str, **more: Any) -> Path:
    """The tiny model of an architecture, with matrices in Q8_0, which our kernels compute."""
    assert architecture in ARCHITECTURES
    path = folder / f"{architecture}.gguf"
    sizes = {"weights": "Q8_0", **SIZES.get(architecture, {}), **more}
    return path if path.exists() else write_tiny(path, architecture, **sizes)


def settings_of(path: Path, *, n_ctx: int = 512, n_ubatch: int = 32) -> ContextSettings:
    """As a plan sets a target up that is given drafts of `N_DRAFT` tokens."""
    shape = from_header(read_header(path))
    n_rs_seq = N_DRAFT + 1 if shape.keeps_snapshots else 0
    return ContextSettings(
        n_ctx, n_ubatch, N_DRAFT + 1, n_rs_seq=n_rs_seq, n_saved_states=5 if shape.is_recurrent else 0
    )


def open_backend(path: Path, settings: ContextSettings | None = None) -> LlamaBackend:
    return LlamaBackend(LlamaModel(path), settings or settings_of(path))


def some(n: int, seed: int, n_vocab: int = 256) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(n_vocab) for _ in range(n)]


class ErringDrafter:
    """Knows the answer, drafts 1 to 8 tokens of it, and gets some of them wrong on purpose."""

    engine_s = 0.0

    def __init__(self, text: Sequence[int], n_vocab: int, seed: int) -> None:
        """`text`: prompt and answer."""
        self._text, self._n_vocab, self._rng = text, n_vocab, random.Random(seed)

    def begin(
        self, prompt: Sequence[int], *, own_prompt: Sequence[int] | None = None, sampling: Sampling = GREEDY
    ) -> None:
        pass

    def propose(self, tokens: Sequence[int], n_draft: int) -> Draft:
        rng, n = self._rng, min(n_draft, self._rng.randint(1, N_DRAFT))
        drafted = list(self._text[len(tokens) : len(tokens) + n])
        for i, token in enumerate(drafted):
            if rng.random() < WRONG:
                drafted[i] = (token + rng.randrange(1, self._n_vocab)) % self._n_vocab
        return Draft(drafted, source="model")

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Drafted:
    """Answers with and without drafts."""

    n_prompts: int = 0
    n_equal: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    n_rounds: int = 0
    n_tokens: int = 0


def compare_drafts(path: Path, n_prompts: int, n_new: int = 40) -> Drafted:
    """Greedy answers to prompts of 1 to 120 tokens, plain and with drafts that err; every other with a penalty on
    repetition.
    """
    found, backend = Drafted(), open_backend(path)
    for i in range(n_prompts):
        sampling = VARIED if i % 2 else GREEDY
        prompt = some(random.Random(i).randint(1, 120), 1000 + i)
        backend.truncate(0)
        plain = generate(backend, NoDrafter(), prompt, sampling, n_draft=0, max_new=n_new)
        answer = [token for step in plain for token in step.tokens]
        backend.truncate(0)
        drafter = ErringDrafter([*prompt, *answer], backend.n_vocab, i)
        steps = list(generate(backend, drafter, prompt, sampling, n_draft=N_DRAFT, max_new=n_new))
        found.n_prompts += 1
        found.n_equal += [token for step in steps for token in step.tokens] == answer
        found.n_drafted += sum(step.n_drafted for step in steps)
        found.n_accepted += sum(step.n_accepted for step in steps)
        found.n_rounds += len(steps)
        found.n_tokens += len(answer)
    _close(backend)
    return found


@dataclass(slots=True)
class RolledBack:
    """Rounds of a text, each compared with a fresh evaluation of all that was accepted before."""

    n_patterns: int = 0
    n_rejected: int = 0  # tokens taken back
    n_rows: int = 0  # of logits that were compared
    n_other_bits: int = 0  # of these, not the same in every bit
    largest: float = 0.0  # difference of a logit


def compare_rollbacks(path: Path, n_patterns: int, seed: int = 7) -> RolledBack:
    """Rounds of 1 to 9 tokens of which a random number is accepted, one after the other in one text."""
    found, rng = RolledBack(), random.Random(seed)
    backend, other = open_backend(path), open_backend(path)
    held: list[int] = []
    for i in range(n_patterns):
        if not held or len(held) > 300:
            held = some(rng.randint(1, 90), seed + 7 * i)
            backend.truncate(0)
            backend.forward(held, 0)
        drafted = some(rng.randint(1, N_DRAFT + 1), seed + 7 * i + 1)
        rows = backend.forward(drafted, len(drafted)).copy()
        wanted = fresh_rows(other, held, drafted)
        n_kept = rng.choice((1, rng.randint(1, len(drafted)), len(drafted)))
        backend.truncate(len(held) + n_kept)
        held += drafted[:n_kept]
        assert backend.tokens == held
        found.n_patterns += 1
        found.n_rejected += len(drafted) - n_kept
        found.n_rows += len(rows)
        found.n_other_bits += int((rows != wanted).any(axis=1).sum())
        found.largest = max(found.largest, float(np.abs(rows - wanted).max()))
    _close(backend, other)
    return found


def fresh_rows(backend: LlamaBackend, before: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
    """The rows of `tokens`, each in a pass of its own, in a text that is read from its beginning."""
    backend.truncate(0)
    backend.forward(before, 0)
    return np.concatenate([backend.forward([token], 1).copy() for token in tokens])


@dataclass(frozen=True, slots=True)
class LineOfMemory:
    """A line of a plan, and what the engine holds of it once the context is made. Bytes."""

    name: str
    planned: int
    held: int


def compare_memory(path: Path, settings: ContextSettings | None = None) -> list[LineOfMemory]:
    """Weights, cache with snapshots, copies of states, and temporaries, by formula and as the engine reports them."""
    import llama_cpp.llama_cpp as api

    settings = settings or settings_of(path)
    shape = from_header(read_header(path))
    pair = PairSettings(settings, N_DRAFT, None, loading="packed" if kernels().active else "copied", repack=False)
    lines = {line.name: line.n_bytes for line in plan(shape, None, pair, Limit("none", 0)).lines}
    backend = LlamaBackend(LlamaModel(path, ModelOptions(mmap=False)), settings)
    parts = probe._breakdown(api, backend._ctx)
    assert parts is not None
    weights, cache, compute = (sum(part[i] for part in parts) for i in (1, 2, 3))
    found = [
        LineOfMemory("weights", lines["target weights"], weights),
        LineOfMemory("cache", lines["target cache"], cache),
    ]
    if settings.n_saved_states:
        backend.forward(some(5, 1), 0)
        size = api.llama_state_seq_get_size_ext(backend._ctx, 0, api.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)
        found.append(LineOfMemory("states", lines["target states"], settings.n_saved_states * int(size)))
    scratch = work_bytes(shape, settings)  # the kernels' own, which is not in the engine's report
    found.append(LineOfMemory("compute", lines["target compute"] - scratch, compute))
    _close(backend)
    return found


@dataclass(frozen=True, slots=True)
class Turn:
    """Tokens of a turn's prompt: all, those that are not as the context held them, and those that were read."""

    n_prompt: int
    n_new: int
    n_read: int


def converse(engine: Engine, n_turns: int, *, think_budget: int | None = None, max_tokens: int = 40) -> list[Turn]:
    """Turns of one conversation, with the engine's own drafting."""
    from edgellm.runtime import ChatSession

    session = ChatSession(engine, system="you are a hat", sampling=SPELLED, think_budget=think_budget)
    backend, turns = engine.backend, []
    assert isinstance(backend, LlamaBackend)
    decode = backend._decode
    begins: list[int] = []

    def noting(tokens: Sequence[int], n_rows: int, **more: bool) -> None:
        begins.append(len(backend.tokens))
        decode(tokens, n_rows, **more)

    backend._decode = noting  # type: ignore[method-assign]
    for i in range(n_turns):
        before = list(backend.tokens)
        begins.clear()
        for _ in session.reply(f"the cat in hat {i} thinks of tea", max_tokens=max_tokens):
            pass
        assert session.last is not None
        prompt = backend.tokens[: session.last.stats.n_prompt]
        n_shared = next((j for j, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), None)
        n_shared = min(len(before), len(prompt)) if n_shared is None else n_shared
        turns.append(Turn(len(prompt), len(prompt) - n_shared, len(prompt) - min(begins)))
    backend._decode = decode  # type: ignore[method-assign]
    return turns


def _close(*backends: LlamaBackend) -> None:
    for backend in backends:
        backend.close()
        backend.model.close()
