"""The child that trains a drafter: lessons in, and an adapter out that is adopted where it is better.

`app.adapting` starts it and reads what it tells: the phase, each step, and in the end the outcome. Nothing that is in
use changes before the last moment, so it may be killed whenever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

from edgellm.memory import files
from edgellm.memory.children import Send, in_background, serve, stop_asked
from edgellm.memory.device import this_machine
from edgellm.memory.draft_adapter import DraftAdapter, read_draft_adapter
from edgellm.memory.errors import EdgellmError
from edgellm.memory.gguf import read_header
from edgellm.memory.plan import DoesNotFit
from edgellm.memory.shape import from_header
from edgellm.memory.training_size import training_bytes
from edgellm.memory.units import format_bytes
from edgellm.runtime.distillation.adopted import Adopted
from edgellm.runtime.distillation.architecture import Shape
from edgellm.runtime.distillation.curriculum import Curriculum, Named, arrange, n_tokens_of, samples_of
from edgellm.runtime.distillation.judging import MIN_ANSWERS, Comparison, Judgement, compare, judge
from edgellm.runtime.distillation.network import Network
from edgellm.runtime.distillation.orders import Result, TrainingOrder, telling_failures
from edgellm.runtime.distillation.pair import open_pair
from edgellm.runtime.distillation.training import Step, TrainingSettings, train
from edgellm.runtime.distillation.trial import Stopped, Trial
from edgellm.runtime.distillation.unfinished import Unfinished
from edgellm.runtime.distillation.watching import RunningClock, Watch, zeroed

MIN_TOKENS = 1_000  # of lessons that are new; learning fewer is not worth reading the model for
LEARNING_COST = 4.0  # what learning a token takes, by what reading it takes
MAX_NAMED = 40_000  # lessons of which an adapter's record says that it had them
STOPPED = "it was stopped; the same command goes on"
N_STEPS, MIN_BATCH_TOKENS = 20, 250  # so many steps are made of few lessons, of so many answer tokens at least


class Course:
    """One training, step by step."""

    def __init__(self, order: TrainingOrder, send: Send, clock: RunningClock) -> None:
        self.order, self._send, self._clock = order, send, clock
        self._warnings: list[str] = []
        self._base = files.sha256_of(Path(order.draft))
        self._adopted = Adopted(Path(order.adopted), self._warn)
        self._unfinished = Unfinished(Path(order.adopted), order.target_key, self._base)
        self._in_use = read_draft_adapter(Path(order.adapter)) if order.adapter else None
        self._start = files.sha256_of(Path(order.adapter)) if order.adapter else "plain"
        self._taken_back: str | None = None

    def run(self) -> Result:
        """Raises DoesNotFit, DistillationError, DraftAdapterError, LoadError, OSError."""
        self._tell(phase="reading the lessons")
        curriculum = self._curriculum()
        if why := self._lacks(curriculum):
            return self._result(why, curriculum)
        network = self._open(curriculum)
        try:
            return self._learn_and_judge(network, curriculum)
        except Stopped:
            return self._result(STOPPED, curriculum, reason="stopped")

    def _learn_and_judge(self, network: Network, curriculum: Curriculum) -> Result:
        self._tell(phase="judging the drafter as it is")
        trial = Trial(
            network,
            curriculum.judging,
            n_threads=self.order.n_threads,
            seconds=self.order.seconds,
            clock=lambda: self._clock.seconds,
            stop_asked=stop_asked.is_set,
        )
        self._begin_with(network, curriculum, trial)
        plain = trial.plain_hits()
        before = trial.hits() if self._in_use is not None else plain
        taught = self._taught(curriculum, trial)
        reason = self._learn(network, taught, curriculum, trial)
        if reason == "stopped":
            raise Stopped("it was stopped while it learnt")
        self._tell(phase="judging what was learnt")
        comparison = compare(before, trial.hits())
        return self._settle(network, curriculum, taught, trial, comparison, judge(plain), reason)

    def _curriculum(self) -> Curriculum:
        order = self.order
        with open_pair(Path(order.target), Path(order.draft), Path(order.learned), self._warn) as pair:
            return arrange(pair.lessons.all(), pair.maker.sample, seen_by(self._in_use))

    def _lacks(self, curriculum: Curriculum) -> str:
        """Why there is nothing to train on, in a sentence; "" where there is."""
        n_new, n_judging = n_tokens_of(curriculum.new), len(curriculum.judging)
        if n_new >= MIN_TOKENS and n_judging >= MIN_ANSWERS:
            return ""
        return (
            f"too few lessons: {len(curriculum.new)} new ones ({n_new:,} tokens) to learn and {n_judging} to judge by, "
            f"where {MIN_TOKENS:,} tokens and {MIN_ANSWERS} answers are needed; the same command goes on, and chats "
            "and --prompts FILE bring more"
        )

    def _open(self, curriculum: Curriculum) -> Network:
        """Raises DoesNotFit before the weights are read. UnknownShape, DistillationError."""
        order, header = self.order, read_header(Path(self.order.draft))
        free = order.mem_bytes if order.mem_bytes is not None else this_machine().usable_bytes
        Shape.of(header)  # says why, where it cannot be trained
        longest = max(sample.n_tokens for _, sample in (*curriculum.new, *curriculum.old, *curriculum.judging))
        shape, threads = from_header(header), range(order.n_threads, 0, -1)
        needs = {n: training_bytes(shape, n, longest) for n in threads}
        self._refuse(needs[1], free)
        self.order = replace(order, n_threads=next(n for n, needed in needs.items() if needed <= free))
        return Network(header)

    def _refuse(self, needed: int, free: int) -> None:
        if needed > free:
            raise DoesNotFit(
                f"training {self.order.draft_name} takes {format_bytes(needed)} and there are {format_bytes(free)} for "
                "it: end other programs, raise --mem, or take a smaller --draft"
            )

    def _begin_with(self, network: Network, curriculum: Curriculum, trial: Trial) -> None:
        """What is in use, unless answers since then say that it makes things worse: it is then taken back."""
        if self._in_use is None:
            return
        found = trial.of_use(self._in_use.changes, curriculum.newer)
        if found.is_worse and found.interval is not None:
            self._taken_back = (
                f"on {found.new.n_answers} answers that came after it was learnt it brought {_figures(found)} of the "
                "plain drafter"
            )
            self._adopted.take_back(self.order.target_key, self._base, self._taken_back, adapter_sha256=self._start)
            self._tell(taken_back=self._taken_back)
            network.take(zeroed(network.changes()))
            self._in_use, self._start = None, "plain"

    def _taught(self, curriculum: Curriculum, trial: Trial) -> list[Named]:
        """What is learnt: what an earlier run began with, or as many of the newest as the time is enough for."""
        known = [*curriculum.new, *curriculum.old]
        if (kept := self._unfinished.lessons(self._start, known)) is not None:
            self._tell(resumed=True)
            return kept
        seconds = max(self._until_s(trial) - self._clock.seconds, 0.0)
        taught = curriculum.taught(int(seconds * trial.tokens_per_s / LEARNING_COST), MIN_TOKENS)
        self._unfinished.begin(self._start, taught)
        return taught

    def _until_s(self, trial: Trial) -> float:
        """When learning has to end, so that there is time to judge."""
        return self.order.seconds - 1.2 * trial.seconds

    def _learn(self, network: Network, taught: Sequence[Named], curriculum: Curriculum, trial: Trial) -> str:
        """Leaves the network as what was learnt will run; what ended it, see `Watch`."""
        if (learnt := self._unfinished.learnt()) is not None:  # only to be judged was left
            network.take(learnt.changes)
            return "learnt"
        order = self.order
        self._tell(phase="learning", n_lessons=len(taught))
        watch = Watch(
            network,
            samples_of(curriculum.stopping),
            n_threads=order.n_threads,
            clock=lambda: self._clock.seconds,
            until_s=self._until_s(trial),
            kept_every_s=order.kept_every_s,
            stop_asked=stop_asked.is_set,
            tell=lambda event: self._tell(**event),
        )

        def on_step(step: Step) -> bool:
            self._tell(step=asdict(step))
            return watch(step)

        settings, is_resting = settings_for(taught, order.n_threads), True
        while is_resting:
            watch.is_resting = False
            train(network, samples_of(taught), settings, on_step=on_step, checkpoint=self._unfinished.checkpoint)
            is_resting = watch.is_resting
        if watch.reason != "stopped":
            watch.settle()
            self._unfinished.keep(DraftAdapter(self._base, network.changes()))
            if (learnt := self._unfinished.learnt()) is not None:  # rounded, as it will run
                network.take(learnt.changes)
        return watch.reason

    def _settle(
        self,
        network: Network,
        curriculum: Curriculum,
        taught: Sequence[Named],
        trial: Trial,
        comparison: Comparison,
        plain: Judgement,
        reason: str,
    ) -> Result:
        """Use it if it is better, and write it where it was asked for."""
        order = self.order
        record = self._record(curriculum, taught, trial, comparison, plain)
        adapter = DraftAdapter(self._base, network.changes(), record)
        if order.output is not None:
            files.write(Path(order.output), adapter.to_bytes())
        path = self._adopted.adopt(order.target_key, adapter, Path(order.draft)).path if comparison.is_better else None
        self._unfinished.end()
        return replace(
            self._result(_verdict(comparison), curriculum, reason=reason),
            adopted=comparison.is_better,
            comparison=comparison.to_json(),
            n_taught=len(taught),
            n_tokens=sum(len(sample.answer) for _, sample in taught),
            n_judged=len(trial.judging),
            path=str(path) if path is not None else None,
            output=order.output,
        )

    def _record(
        self,
        curriculum: Curriculum,
        taught: Sequence[Named],
        trial: Trial,
        comparison: Comparison,
        plain: Judgement,
    ) -> dict[str, Any]:
        """What is kept with an adapter; see `DraftAdapter`."""
        n_tokens = sum(len(sample.answer) for _, sample in taught)
        n_earlier = self._in_use.record.get("n_tokens", 0) if self._in_use is not None else 0
        parts = (taught, curriculum.stopping, trial.judging)
        had = {name for part in parts for name, _ in part} | seen_by(self._in_use)
        found = comparison.to_json()
        return {
            "target": self.order.target_name,
            "target_key": self.order.target_key,
            "drafter": self.order.draft_name,
            "date": date.today().isoformat(),
            "n_lessons": len(taught),
            "n_tokens": n_tokens + (n_earlier if isinstance(n_earlier, int) else 0),
            "before": plain.to_json(),
            "after": comparison.new.to_json(),
            "in_use": found["old"],  # that it began with, by which it was judged
            "ratio": found["ratio"],
            "interval": found["interval"],
            "seconds": round(self._clock.seconds, 1),
            "start": self._start,
            # Of those that there are: lessons that have gone since need not be known.
            "lessons": [name for name in curriculum.known if name in had][-MAX_NAMED:],
        }

    def _result(self, why: str, curriculum: Curriculum, *, reason: str = "") -> Result:
        return Result(
            False,
            why,
            reason,
            n_lessons=len(curriculum.known),
            n_judged=len(curriculum.judging),
            seconds=round(self._clock.seconds, 1),
            taken_back=self._taken_back,
        )

    def _warn(self, text: str) -> None:
        self._tell(warning=text)

    def _tell(self, **event: Any) -> None:
        self._send(event)


def _figures(found: Comparison) -> str:
    interval = f", 95 % interval {found.interval[0]:.3f} to {found.interval[1]:.3f}" if found.interval else ""
    return f"{found.ratio:.3f} times the tokens a pass{interval}"


def _verdict(found: Comparison) -> str:
    n = found.new.n_answers
    if found.is_better:
        return f"used from now on: {n} answers that it never learnt from are drafted better, {_figures(found)}"
    return f"not used: {n} answers that it never learnt from are not surely drafted better, {_figures(found)}"


def settings_for(taught: Sequence[Named], n_threads: int) -> TrainingSettings:
    """Of few lessons smaller steps are made: a step moves a number by a thousandth, however much it learns from."""
    usual, n_tokens = TrainingSettings(n_threads=n_threads), sum(len(sample.answer) for _, sample in taught)
    batch_tokens = min(usual.batch_tokens, max(n_tokens // N_STEPS, MIN_BATCH_TOKENS))
    n_warm_up = min(usual.n_warm_up, 1 + n_tokens // batch_tokens // 4)
    return replace(usual, batch_tokens=batch_tokens, n_warm_up=n_warm_up)


def seen_by(adapter: DraftAdapter | None) -> set[str]:
    """Ids of the lessons that an adapter's training had."""
    names = adapter.record.get("lessons") if adapter is not None else None
    return {str(name) for name in names} if isinstance(names, list) else set()


def _run(request: dict[str, Any], send: Send) -> None:
    order = TrainingOrder(**request)
    in_background(order.niceness)
    with telling_failures(send):
        send({"result": Course(order, send, RunningClock()).run().to_json()})


if __name__ == "__main__":
    serve(_run, EdgellmError, OSError)
