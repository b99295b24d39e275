"""Replay recordings (`benchmarks/record.py`) through the real loop and controller, on a clock that is computed.

    python benchmarks/simulate.py TARGET.gguf DRAFTER.gguf RECORDING.jsonl [--curves ours.json] [--json OUT]
    python benchmarks/simulate.py ... --set horizon=20 --set optimism=0.1    another number of `drafters/tuning.py`
    python benchmarks/simulate.py ... --vary                                 each of them halved and doubled

The target "computes" by reading the recorded answer, the drafter by reading what it drafted at that place; each pass
advances a clock by its cost. So policies are compared in seconds, under any cost curve, and against an oracle that
knows which tokens will be accepted and chooses source and length of every round by dynamic programming.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.memory.drafting_budgets import NGRAM_BYTES
from edgellm.runtime.backends.base import Logits
from edgellm.runtime.backends.llama_model import LlamaModel, ModelOptions
from edgellm.runtime.decode import generate
from edgellm.runtime.drafters.base import Guess
from edgellm.runtime.drafters.controller import AdaptiveDrafter
from edgellm.runtime.drafters.own_draft import OwnDraft, guesses_of
from edgellm.runtime.drafters.retokenizers import (
    MapRetokenizer,
    MergingRetokenizer,
    Retokenizer,
    TextRetokenizer,
    learn_mappings,
)
from edgellm.runtime.drafters.tuning import TUNING, Tuning
from edgellm.runtime.learning.costs import CostCurve, Costs, assumed
from edgellm.runtime.learning.edit_alignment import EditAlignment
from edgellm.runtime.learning.lookup import Lookup
from edgellm.runtime.learning.ngram_index import NgramIndex
from edgellm.runtime.learning.ngrams import NgramCache
from edgellm.runtime.learning.persistence import SavedStore
from edgellm.runtime.sampling import GREEDY, Sampling
from edgellm.runtime.text.translate import WINDOW, GrowingText
from edgellm.runtime.text.vocabulary import Vocabulary

N_MOST = 15  # tokens a draft


@dataclass
class Clock:
    now_s: float = 0.0


@dataclass
class Recording:
    """One answer, and what was drafted at each of its places."""

    id: str
    task: str
    prompt: list[int]
    answer: list[int]
    drafts: list[dict[str, Any]]

    @property
    def whole(self) -> list[int]:
        return self.prompt + self.answer


class ReplayTarget:
    """`Backend` that says what was recorded; a pass takes what the curve says."""

    n_ctx = 1 << 20
    max_outputs = N_MOST + 1
    can_shift = False

    def __init__(self, recording: Recording, n_vocab: int, curve: CostCurve, clock: Clock) -> None:
        self._recording, self.n_vocab, self._curve, self._clock = recording, n_vocab, curve, clock
        self._next = recording.whole
        self.tokens: list[int] = []
        self.engine_s = 0.0
        self._rows = np.zeros((self.max_outputs, n_vocab), np.float32)
        self._hot: list[tuple[int, int]] = []

    def forward(self, tokens: Sequence[int], n_outputs: int) -> Logits:
        context = len(self.tokens)
        self.tokens += tokens
        if n_outputs:
            seconds = self._curve(len(tokens), context)
            self._clock.now_s += seconds
            self.engine_s += seconds
        for row, token in self._hot:
            self._rows[row, token] = 0.0
        self._hot = []
        for row in range(n_outputs):
            place = len(self.tokens) - n_outputs + row + 1
            if place < len(self._next):
                self._hot.append((row, self._next[place]))
                self._rows[row, self._next[place]] = 1.0
        return self._rows[:n_outputs]

    def truncate(self, length: int) -> None:
        del self.tokens[max(0, length) :]

    def forget_oldest(self, n: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class ReplayDrafter:
    """`Proposer` that drafts what was recorded; translation is the real one."""

    def __init__(
        self, own: Vocabulary, target: Vocabulary, turn_end: int, curve: CostCurve, clock: Clock,
        *, retokenizer: Retokenizer, cache: NgramCache | None,
    ) -> None:  # fmt: skip
        self._own, self._target, self._turn_end = own, target, turn_end
        self._curve, self._clock, self._retokenizer, self._cache = curve, clock, retokenizer, cache
        self.backend = ReplayTarget(Recording("", "", [], [], []), own.n_tokens, curve, clock)  # nothing is asked of it
        self.engine_s = 0.0
        self.n_merged = 0
        self.recording: Recording | None = None
        self._context = GrowingText(own, [])
        self._n_read = self._n = 0
        self._n_unlearnt = 0

    def play(self, recording: Recording) -> None:
        self.recording = recording

    def begin(self, prompt: Sequence[int], *, own_prompt: Any = None, sampling: Sampling = GREEDY) -> None:
        self._context = GrowingText(self._own, [])
        self._n, self._n_read, self._n_unlearnt = len(prompt), 0, 0

    def n_unread(self) -> int:
        return min(self._n - self._n_read, 512)

    def prefill(self) -> None:  # counted as the prompt's reading, as everywhere
        self._n_read = self._n - 1

    def observe(self, tokens: Sequence[int], n_new: int) -> None:
        self._n = len(tokens)
        self._context.append(self._target.decode(tokens[len(tokens) - n_new :]))
        self._n_unlearnt += n_new
        if self._cache is not None and self._n_unlearnt >= 2 and not self._context.unfinished:
            n = min(self._n_unlearnt, WINDOW)
            learn_mappings(
                self._cache, self._own, self._target, self._context.tokens[-64:], tokens[len(tokens) - n :], n
            )
            self._n_unlearnt = 1

    def _pass(self, n: int) -> None:
        seconds = self._curve(n, self._n)
        self.engine_s += seconds
        self._clock.now_s += seconds

    def drafting(self, tokens: Sequence[int], prefix: Sequence[int]) -> Iterator[list[Guess]]:
        assert self.recording is not None
        place = len(tokens) + len(prefix) - len(self.recording.prompt)
        answer = self.recording.answer
        right = list(prefix) == answer[place - len(prefix) : place]
        if place >= len(self.recording.drafts):
            return
        # Behind a wrong prefix everything is rejected: what was drafted at the place itself is as good as anything.
        draft = self.recording.drafts[place if right else place - len(prefix)]
        tail = (*tokens[-WINDOW:], *prefix)[-WINDOW:]
        n_skip = len(draft["unfinished"])
        n_merged = 0
        n_first = max(1, len(tokens) - self._n_read + len(prefix))
        so_far = OwnDraft()
        for i, token in enumerate(draft["tokens"]):
            self._pass(min(n_first, 512) if not i else 1)
            self._n_read = len(tokens) if not prefix else len(tokens) - 1
            if token in self._own.end_tokens:
                retokenized = self._retokenizer.retokenize(tail, so_far.tokens, n_skip)
                settled = retokenized._replace(n_settled=len(retokenized.tokens))
                guesses = guesses_of(settled, so_far, self._own, self._target)
                yield [*guesses, Guess(self._turn_end, draft["top"][i], draft["entropy"][i])]
                return
            so_far.append(token, draft["top"][i], draft["entropy"][i])
            retokenized = self._retokenizer.retokenize(tail, so_far.tokens, n_skip)
            self.n_merged += retokenized.n_merged - n_merged
            n_merged = retokenized.n_merged
            yield guesses_of(retokenized, so_far, self._own, self._target)
            if not retokenized.goes_on:
                return

    def close(self) -> None:
        pass


@dataclass
class Figures:
    """Sums over the answers that were replayed."""

    n_new: int = 0
    n_rounds: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    seconds: float = 0.0
    overhead_s: float = 0.0  # real time that choosing took
    n_merged: int = 0  # tokens that the n-gram cache merged
    by_task: dict[str, tuple[int, float, int]] = field(default_factory=dict)

    def add(self, task: str, n_new: int, n_rounds: int, n_drafted: int, n_accepted: int, seconds: float) -> None:
        self.n_new += n_new
        self.n_rounds += n_rounds
        self.n_drafted += n_drafted
        self.n_accepted += n_accepted
        self.seconds += seconds
        a, b, c = self.by_task.get(task, (0, 0.0, 0))
        self.by_task[task] = (a + n_new, b + seconds, c + n_rounds)

    @property
    def speed(self) -> float:
        return self.n_new / self.seconds

    @property
    def a_round(self) -> float:
        return self.n_new / self.n_rounds


@dataclass
class Pair:
    target: Vocabulary
    own: Vocabulary
    turn_end: int


def replay(
    pair: Pair,
    recordings: Iterable[Recording],
    costs: Callable[[], Costs],
    *,
    model: bool = True,
    copy: bool = True,
    store: bool = True,
    spelling: str = "merged",
    cache: NgramCache | None = None,
    fixed: int | None = None,
    stop: Any = "cost",
    tuning: Tuning = TUNING,
    drafter_made: Callable[[AdaptiveDrafter], None] = lambda drafter: None,
) -> Figures:
    """One configuration over all recordings in their order, beginning with nothing learnt."""
    clock, both = Clock(), costs()
    figures = Figures()
    cache = cache or NgramCache(NGRAM_BYTES)
    retokenizer: Retokenizer = TextRetokenizer(pair.own, pair.target)
    if spelling == "merged":
        retokenizer = MergingRetokenizer(pair.own, pair.target, cache)
    elif spelling != "text":
        retokenizer = MapRetokenizer(pair.own, pair.target, cache if spelling == "omnidraft" else None)
    assert both.draft is not None
    drafting = ReplayDrafter(
        pair.own, pair.target, pair.turn_end, both.draft, clock, retokenizer=retokenizer, cache=cache
    )  # fmt: skip
    kept = SavedStore(None, pair.target.n_tokens).index if store else None
    adaptive: AdaptiveDrafter | None = None
    for recording in recordings:
        target = ReplayTarget(recording, pair.target.n_tokens, both.target, clock)
        drafting.play(recording)
        if adaptive is None:
            adaptive = AdaptiveDrafter(
                target, both, model=drafting if model else None, conversation=NgramIndex(8192) if copy else None,
                store=kept, fixed=fixed, stop=stop, tuning=tuning,
            )  # fmt: skip
            drafter_made(adaptive)
        adaptive.target = target
        adaptive.economics.table_for = (-1, -1)
        adaptive.begin(recording.prompt)
        started = clock.now_s
        steps = list(
            generate(
                target, adaptive, recording.prompt, GREEDY, n_draft=N_MOST, max_new=len(recording.answer),
                stop=frozenset([pair.turn_end]),
            )
        )  # fmt: skip
        said = [token for step in steps for token in step.tokens]
        assert said == recording.answer, "a replayed answer is what was recorded"
        figures.add(
            recording.task,
            len(said),
            len(steps),
            sum(step.n_drafted for step in steps),
            sum(step.n_accepted for step in steps),
            clock.now_s - started,
        )
    figures.n_merged = drafting.n_merged
    figures.overhead_s = adaptive.choices.overhead_s if adaptive is not None else 0.0
    return figures


def spellings(pair: Pair, recordings: Sequence[Recording], costs: Callable[[], Costs], n_draft: int) -> None:
    """OmniDraft's table for this pair: the model alone at a fixed length, and its drafts said in five ways."""
    print(f"model alone, {n_draft} tokens a draft:")
    full = NgramCache(NGRAM_BYTES)
    rows: list[tuple[str, str, NgramCache | None]] = [
        ("direct map", "direct", None),
        ("OmniDraft, cold", "omnidraft", full),
        ("OmniDraft, warm", "omnidraft", full),
    ]
    for i in range(len(rows) + 2):
        if i == 3:  # the cache's size is known by now
            rows += [("OmniDraft, warm, a quarter", "omnidraft", quarter := NgramCache(full.n_bytes // 4))]
            quarter.merge(full.entries())
            rows += [("text again", "text", None)]
        name, spelling, cache = rows[i]
        f = replay(pair, recordings, costs, copy=False, store=False, fixed=n_draft, spelling=spelling, cache=cache)
        held = f"{cache.n_entries:,} entries, {cache.n_bytes:,} B" if cache is not None else "no cache"
        print(f"  {name:<27}{f.a_round:5.2f} tokens a round, {f.n_accepted / f.n_drafted:4.0%} accepted, "
              f"{f.n_merged / f.n_rounds:5.2f} merged a round, {held}")  # fmt: skip


def oracle(pair: Pair, recordings: Sequence[Recording], costs: Costs, *, spelling: Retokenizer) -> Figures:
    """The least time in which the recorded drafts and the lookups could have brought each answer.

    At every place: looked-up tokens first (as many as turn out right, free), then passes of the drafter (as many as
    pay), or nothing; the choice of all rounds together is a shortest path. It knows what will be accepted and never
    proposes more.
    """
    figures, store, talk = Figures(), NgramIndex(1 << 17), NgramIndex(8192)
    assert costs.draft is not None
    for recording in recordings:
        talk.clear()
        talk.extend(recording.prompt)
        whole, n_prompt, n = recording.whole, len(recording.prompt), len(recording.answer)
        alignment = EditAlignment(talk)
        lookup = Lookup({"copy": talk, "store": store}, alignment)
        n_looked_up: list[int] = []
        n_by_model: list[list[int]] = []  # place -> [tokens right after so many passes]
        for place in range(n):
            lookup.start(whole[: n_prompt + place])
            right = 0
            while place + right < n and right < N_MOST:
                found = lookup.candidate()
                if found is None or found.token != recording.answer[place + right]:
                    break
                lookup.take(found.token)
                right += 1
            n_looked_up.append(right)
            draft = recording.drafts[place]
            tail = whole[max(0, n_prompt + place - WINDOW) : n_prompt + place]
            rights = []
            for i in range(1, len(draft["tokens"]) + 1):
                if draft["tokens"][i - 1] in pair.own.end_tokens:
                    retokenized = spelling.retokenize(tail, draft["tokens"][: i - 1], len(draft["unfinished"]))
                    tokens = [*retokenized.tokens, pair.turn_end]
                else:
                    tokens = spelling.retokenize(tail, draft["tokens"][:i], len(draft["unfinished"])).tokens
                same = 0
                while same < len(tokens) and place + same < n and tokens[same] == recording.answer[place + same]:
                    same += 1
                rights.append(same)
                if draft["tokens"][i - 1] in pair.own.end_tokens:
                    break
            n_by_model.append(rights)
            talk.extend([recording.answer[place]])
            alignment.follow(recording.answer[place])
        best = [0.0] * (n + 1)
        rounds = [0] * (n + 1)
        table = costs.target.table(N_MOST + 1, n_prompt + n // 2)
        first_s, pass_s = costs.draft(2, n_prompt), costs.draft(1, n_prompt)
        for place in range(n - 1, -1, -1):
            options = []
            for k in range(min(n_looked_up[place], n - place - 1, N_MOST) + 1):
                options.append((table[k] + best[place + k + 1], place + k + 1))
                behind = place + k
                for passes, right in enumerate(n_by_model[behind], 1):
                    m = min(k + right, n - place - 1, N_MOST)
                    spent = first_s + (passes - 1) * pass_s + (costs.draft(k + 2, n_prompt) - first_s if k else 0.0)
                    options.append((spent + table[m] + best[place + m + 1], place + m + 1))
            best[place], then = min(options)
            rounds[place] = 1 + rounds[then]
        figures.add(recording.task, n, rounds[0], 0, 0, best[0])
        store.extend([-1, *recording.prompt[-4:], *recording.answer])
    return figures


def vary(pair: Pair, recordings: Sequence[Recording], costs: Callable[[], Costs], tuning: Tuning) -> None:
    """The controller's speed with half and with twice of each number, over its speed as it is."""
    as_is = replay(pair, recordings, costs, tuning=tuning).speed
    for item in fields(Tuning):
        value = getattr(tuning, item.name)
        if isinstance(value, tuple):
            continue
        found = []
        for factor in (0.5, 2.0):
            other = replace(tuning, **{item.name: type(value)(value * factor)})
            found.append(replay(pair, recordings, costs, tuning=other).speed / as_is - 1.0)
        print(f"  {item.name:<22} {value:>7}: half {found[0]:+.1%}, twice {found[1]:+.1%}", flush=True)


def read_recordings(path: Path) -> list[Recording]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [Recording(f"{r['id']}/{r['turn']}", r["task"], r["prompt"], r["answer"], r["drafts"]) for r in records]


def curves(
    target: Path | None, one_ms: float, draft_ms: float, per_token: float = 0.05
) -> dict[str, Callable[[], Costs]]:
    """Named pairs of curves. Those of this machine are read from a file that `--curve` names."""

    def flat() -> Costs:
        return Costs(assumed(one_ms / 1e3, per_token), assumed(draft_ms / 1e3, 0.05))

    found: dict[str, Callable[[], Costs]] = {"flat": flat}
    if target is not None:
        for name, both in json.loads(target.read_text()).items():

            def measured(both: Any = both) -> Costs:
                return Costs(CostCurve.from_json(both["target"]), CostCurve.from_json(both["draft"]))

            found[name] = measured
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("drafter", type=Path)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--one-ms", type=float, default=40.0)
    parser.add_argument("--draft-ms", type=float, default=4.0)
    parser.add_argument("--per-token", type=float, default=0.05, help="of a pass, that each further token costs")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a number of the controller")
    parser.add_argument("--vary", action="store_true", help="only the controller, with half and twice of each number")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    models = [LlamaModel(path, ModelOptions(vocabulary_only=True)) for path in (arguments.target, arguments.drafter)]
    target, own = (model.vocabulary for model in models)
    assert target.turn_end is not None
    pair = Pair(target, own, target.turn_end)
    recordings = read_recordings(arguments.recordings)
    try:
        tuning = TUNING.with_set(arguments.set)
    except ValueError as error:
        parser.error(str(error))
    if arguments.vary:
        for name, costs in curves(arguments.curves, arguments.one_ms, arguments.draft_ms, arguments.per_token).items():
            print(f"{name}:")
            vary(pair, recordings, costs, tuning)
        return
    results: dict[str, Any] = {}
    for n_draft in (4, 8):
        spellings(
            pair, recordings, curves(None, arguments.one_ms, arguments.draft_ms, arguments.per_token)["flat"], n_draft
        )
    text = TextRetokenizer(own, target)
    for name, costs in curves(arguments.curves, arguments.one_ms, arguments.draft_ms, arguments.per_token).items():
        started = time.perf_counter()
        plain = replay(pair, recordings, costs, model=False, copy=False, store=False, fixed=0)

        def run(costs: Callable[[], Costs] = costs, **options: Any) -> Figures:
            return replay(pair, recordings, costs, tuning=tuning, **options)

        alone = {"copy": False, "store": False}
        rows = {
            "none": plain,
            "copy, 8": run(model=False, store=False, fixed=8),
            "copy + store, 8": run(model=False, fixed=8),
            "model, text, 4": run(**alone, fixed=4, spelling="text"),
            "model, text, 8": run(**alone, fixed=8, spelling="text"),
            "model, direct, 8": run(**alone, fixed=8, spelling="direct"),
            "model, OmniDraft, 8": run(**alone, fixed=8, spelling="omnidraft"),
            "model, entropy, 8": run(**alone, fixed=8, stop="entropy"),
            "all, 8": run(fixed=8),
            "controller, model": run(**alone),
            "controller, recall": run(model=False),
            "controller": run(),
            "oracle": oracle(pair, recordings, costs(), spelling=text),
        }
        results[name] = {
            row: {"tokens_per_round": f.a_round, "ratio": f.speed / plain.speed, "n_new": f.n_new}
            for row, f in rows.items()
        }
        best = rows["oracle"].speed
        print(f"{name}: {len(recordings)} answers, {plain.n_new} tokens, {time.perf_counter() - started:.0f} s")
        for row, f in rows.items():
            rate = f.n_accepted / f.n_drafted if f.n_drafted else 0.0
            print(f"  {row:<20} {f.a_round:5.2f} tokens a round, {rate:4.0%} accepted, "
                  f"{f.speed / plain.speed:5.2f} x plain, {f.speed / best:4.0%} of the oracle, "
                  f"{1e6 * f.overhead_s / f.n_rounds:4.0f} us a round")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
