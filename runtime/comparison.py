"""Plain and speculative decoding over the same prompts, in turn, in one process: the instrument behind every speed
figure.

Both sides share the target's weights, context and threads, and their order alternates, so what a shared or warming
machine does to one it does to the other. Figures to trust are ratios.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.runtime.answer import Stats
from edgellm.runtime.backends.base import Backend, keep_common_prefix
from edgellm.runtime.conversation import ChatSession
from edgellm.runtime.engine import Engine
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.template import Message

PLAIN = "none"  # the configuration that the others are compared with
N_BOOTSTRAP = 2000
N_NOISE_PROMPTS = 4
WIDEST = 17  # tokens of a pass that noise is looked for at: drafts are no longer
N_RIVALS = 10  # likeliest tokens whose differences count as noise


class BadPrompts(EdgellmError, ValueError):
    """A prompt file that cannot be used; the message names the line."""

    exit_code = USAGE


@dataclass(frozen=True, slots=True)
class Prompt:
    id: str
    task: str
    turns: tuple[str, ...]


@dataclass(slots=True)
class Run:
    """One configuration on one prompt, all turns together."""

    config: str
    prompt: Prompt
    turns: list[tuple[int, ...]]  # generated ids of each turn
    stats: Stats
    rest_s: float  # of the decode time, in none of the parts

    @property
    def decode_s(self) -> float:
        return self.stats.decode_s


@dataclass(frozen=True, slots=True)
class Difference:
    """Where speculative greedy output first left the plain one."""

    turn: int
    position: int  # tokens into the answer
    plain: str
    speculative: str
    gap: float  # the plain choice's logit less the other's, as plain decoding saw them


@dataclass(slots=True)
class Report:
    """Everything measured; `summary` condenses it."""

    configs: list[str]
    runs: list[Run] = field(default_factory=list)
    differences: dict[tuple[str, str], Difference] = field(default_factory=dict)  # (config, prompt id)
    noise: float | None = None  # the largest change that pass width made to the difference of two likely tokens' logits

    def of(self, config: str, task: str | None = None) -> list[Run]:
        return [run for run in self.runs if run.config == config and task in (None, run.prompt.task)]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(run.prompt.task for run in self.runs))

    def summary(self, config: str, task: str | None = None) -> dict[str, Any]:
        """Figures of one configuration against plain decoding; times in seconds, summed over the prompts."""
        plain, runs = self.of(PLAIN, task), self.of(config, task)
        ratio, low, high = _ratio(plain, runs)
        ids = {run.prompt.id for run in runs}
        total = Stats()
        for run in runs:
            total.add(run.stats)
        return {
            "n_prompts": len(ids),
            "n_new": total.n_new,
            "plain_tokens_per_s": _speed(plain),
            "tokens_per_s": _speed(runs),
            "ratio": ratio,
            "ratio_low": low,
            "ratio_high": high,
            "plain_prefill_tokens_per_s": _prefill_speed(plain),
            "prefill_tokens_per_s": _prefill_speed(runs),
            "tokens_per_round": total.tokens_per_round,
            "acceptance": total.acceptance,
            "acceptance_by": {who: total.accepted_by[who] / n for who, n in total.drafted_by.items()},
            "drafted_by": dict(total.drafted_by),
            "identical": sum(1 for prompt_id in ids if (config, prompt_id) not in self.differences),
            "time_s": {
                "draft": total.draft_s,
                "verify": total.verify_s,
                "translate": total.translate_s,
                "sample": total.sample_s,
                "rest": sum(run.rest_s for run in runs),
            },
        }


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """Prompts of a JSON-lines file: `{"id", "task", "turns": [user message, ...]}` a line.

    Raises:
        BadPrompts: a line is not of that form, or there is none.
    """
    prompts: list[Prompt] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(prompts) >= limit:
                break
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                turns = record["turns"]
                if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
                    raise TypeError
                prompts.append(Prompt(str(record.get("id", number)), str(record.get("task", path.stem)), tuple(turns)))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadPrompts(f'{path}, line {number}: not {{"id", "task", "turns": ["...", ...]}}') from None
    if not prompts:
        raise BadPrompts(f"{path} holds no prompts")
    return prompts


def run(
    engines: dict[str, Engine],
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    repeat: int = 1,
    on_run: Callable[[Run], None] = lambda run: None,
) -> Report:
    """Measure every engine on every prompt, in an order that turns by one each time.

    Args:
        engines: configuration name -> engine; all share one target backend, and `PLAIN` is among them.
        repeat: times over; each run is kept.
        on_run: called after each run, for progress.
    """
    names = list(engines)
    report = Report([name for name in names if name != PLAIN])
    for name in names:  # first calls pay for paging
        _as_before(name, engines[name], known(engines[name]), prompts[0], min(8, max_tokens), sampling)
    for i, prompt in enumerate(prompts):
        before = {name: known(engine) for name, engine in engines.items()}
        for j in range(repeat):
            shift = (i + j) % len(names)
            for name in (*names[shift:], *names[:shift]):
                if j and (drafter := engines[name].controller):
                    drafter.rewind(before[name])  # what the first time taught must not make the second one easy
                result = run_one(name, engines[name], prompt, max_tokens, sampling)
                report.runs.append(result)
                on_run(result)
    if sampling.greedy:
        _compare(report, engines[PLAIN])
    return report


def known(engine: Engine) -> Any:
    """What drafting has learnt, for `AdaptiveDrafter.rewind`."""
    return engine.controller.snapshot() if engine.controller is not None else None


def _as_before(name: str, engine: Engine, known: Any, prompt: Prompt, max_tokens: int, sampling: Sampling) -> None:
    """A run of which nothing remains."""
    run_one(name, engine, prompt, max_tokens, sampling)
    if engine.controller is not None:
        engine.controller.rewind(known)


def run_one(name: str, engine: Engine, prompt: Prompt, max_tokens: int, sampling: Sampling = GREEDY) -> Run:
    """All turns of a prompt, the context empty at first."""
    engine.backend.truncate(0)
    session = ChatSession(engine, sampling=sampling)
    total, turns, rest_s = Stats(), list[tuple[int, ...]](), 0.0
    for turn in prompt.turns:
        for _ in session.reply(turn, max_tokens=max_tokens):
            pass
        assert session.last is not None
        stats = session.last.stats
        turns.append(session.last.tokens)
        total.add(stats)
        rest_s += stats.decode_s - stats.draft_s - stats.translate_s - stats.verify_s - stats.sample_s
    return Run(name, prompt, turns, total, rest_s)


def _compare(report: Report, plain_engine: Engine) -> None:
    plain = {run.prompt.id: run for run in reversed(report.of(PLAIN))}
    for run_ in report.runs:
        reference = plain[run_.prompt.id]
        place = _first_difference(reference.turns, run_.turns)
        if place and (run_.config, run_.prompt.id) not in report.differences:
            report.differences[run_.config, run_.prompt.id] = _explain(plain_engine, reference, run_, *place)
    if report.differences:
        report.noise = max(_noise(plain_engine, reference) for reference in list(plain.values())[:N_NOISE_PROMPTS])
    plain_engine.backend.truncate(0)


def _first_difference(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> tuple[int, int] | None:
    for turn, (left, right) in enumerate(zip(a, b, strict=True)):
        for position, (x, y) in enumerate(zip(left, right, strict=False)):
            if x != y:
                return turn, position
        if len(left) != len(right):
            return turn, min(len(left), len(right))
    return None


def _explain(engine: Engine, plain: Run, other: Run, turn: int, position: int) -> Difference:
    """Decode plainly up to the place again and look at the two candidates."""
    vocabulary, end = engine.model.vocabulary, engine.template.turn_end
    a, b = (list(run.turns[turn][position : position + 1]) or [end if end is not None else 0] for run in (plain, other))
    row = _replay(engine, plain, turn, position)
    gap = float(row[a[0]] - row[b[0]])
    return Difference(
        turn,
        position,
        vocabulary.decode(a).decode("utf-8", "replace"),
        vocabulary.decode(b).decode("utf-8", "replace"),
        gap,
    )


def _prompt_ids(engine: Engine, run_: Run, turn: int) -> list[int]:
    messages = []
    for i in range(turn + 1):
        messages.append(Message("user", run_.prompt.turns[i]))
        if i < turn:
            said = engine.model.vocabulary.decode(run_.turns[i]).decode("utf-8", "replace")
            messages.append(Message("assistant", said, run_.turns[i]))
    return engine.template.render(messages)


def _replay(engine: Engine, plain: Run, turn: int, position: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    backend: Backend = engine.backend
    prompt = _prompt_ids(engine, plain, turn)
    backend.truncate(0)  # as the run itself began, so that the same passes give the same bits
    backend.forward(prompt[:-1], n_outputs=0)
    row = backend.forward(prompt[-1:], n_outputs=1)[0]
    for token in plain.turns[turn][:position]:
        row = backend.forward([token], n_outputs=1)[0]
    copied: np.ndarray[Any, np.dtype[np.float32]] = row.copy()
    return copied


def _noise(engine: Engine, plain: Run) -> float:
    """How far pass width moves the difference of two likely tokens' logits, at worst over one answer."""
    backend, prompt = engine.backend, _prompt_ids(engine, plain, 0)
    tokens = [prompt[-1], *plain.turns[0]]

    def rows(width: int) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        keep_common_prefix(backend, prompt, len(prompt) - 1)
        backend.forward(prompt[len(backend.tokens) : -1], n_outputs=0)
        for i in range(0, len(tokens), width):
            part = tokens[i : i + width]
            yield from backend.forward(part, n_outputs=len(part))

    rivals = [(ids := np.argpartition(row, -N_RIVALS)[-N_RIVALS:], row[ids].copy()) for row in rows(1)]
    worst = 0.0
    for width in range(2, min(backend.max_outputs, WIDEST) + 1):
        for row, (ids, values) in zip(rows(width), rivals, strict=True):
            change = row[ids] - values
            worst = max(worst, float(change.max() - change.min()))
    return worst


def _speed(runs: Iterable[Run]) -> float:
    runs = list(runs)
    seconds = sum(run.decode_s for run in runs)
    return sum(run.stats.n_new for run in runs) / seconds if seconds else 0.0


def _prefill_speed(runs: Iterable[Run]) -> float:
    runs = list(runs)
    seconds = sum(run.stats.prefill_s for run in runs)
    return sum(run.stats.n_prompt - run.stats.n_cached for run in runs) / seconds if seconds else 0.0


def _ratio(plain: Sequence[Run], runs: Sequence[Run]) -> tuple[float, float, float]:
    """Speed over plain speed, with a bootstrap 95 % interval over the prompts."""
    ids = list(dict.fromkeys(run.prompt.id for run in runs))
    if not ids:
        return 0.0, 0.0, 0.0
    sums = np.zeros((4, len(ids)))  # tokens and seconds, of both sides
    for row, side in ((0, runs), (2, plain)):
        for run_ in side:
            if run_.prompt.id in ids:
                column = ids.index(run_.prompt.id)
                sums[row, column] += run_.stats.n_new
                sums[row + 1, column] += run_.decode_s

    def ratio(picked: np.ndarray[Any, Any]) -> Any:
        tokens, seconds, plain_tokens, plain_seconds = sums[:, picked].sum(axis=-1)
        return (tokens / seconds) / (plain_tokens / plain_seconds)

    draws = np.random.default_rng(0).integers(0, len(ids), (N_BOOTSTRAP, len(ids)))
    low, high = np.percentile(ratio(draws), [2.5, 97.5])
    return float(ratio(np.arange(len(ids)))), float(low), float(high)
