"""What was served so far, as Prometheus reads it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from edgellm.app.offered import Offered
from edgellm.runtime.answer import Answer
from edgellm.server.desk import Desk

_HELP = {
    "prompt_tokens": "Tokens of prompts that were read.",
    "cached_tokens": "Tokens of prompts that were cached and not read again.",
    "embedded_tokens": "Tokens of texts that were embedded.",
    "generated_tokens": "Tokens of answers.",
    "drafted_tokens": "Tokens that were drafted.",
    "accepted_tokens": "Drafted tokens that the model would have written.",
    "rounds": "Forward passes of the model for answers.",
    "prompt_seconds": "Seconds of reading prompts.",
    "generation_seconds": "Seconds of writing answers.",
}


class Metrics:
    """Counters, which threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._sums: Counter[str] = Counter()
        self._seconds = dict.fromkeys(("prompt_seconds", "generation_seconds"), 0.0)

    def count_request(self, path: str, status: int) -> None:
        with self._lock:
            self._requests[path, status] += 1

    def count_answer(self, answer: Answer) -> None:
        stats = answer.stats
        with self._lock:
            self._sums["prompt_tokens"] += stats.n_prompt - stats.n_cached
            self._sums["cached_tokens"] += stats.n_cached
            self._sums["generated_tokens"] += stats.n_new
            self._sums["drafted_tokens"] += stats.n_drafted
            self._sums["accepted_tokens"] += stats.n_accepted
            self._sums["rounds"] += stats.n_rounds
            self._seconds["prompt_seconds"] += stats.prefill_s
            self._seconds["generation_seconds"] += stats.decode_s

    def count_embedded(self, n_tokens: int) -> None:
        with self._lock:
            self._sums["embedded_tokens"] += n_tokens

    def to_text(self, desks: Mapping[Offered, Desk]) -> str:
        """The text format, version 0.0.4."""
        with self._lock:
            lines = [
                "# HELP edgellm_requests_total Requests by path and status.",
                "# TYPE edgellm_requests_total counter",
            ]
            for (path, status), n in sorted(self._requests.items()):
                lines.append(f'edgellm_requests_total{{path="{path}",status="{status}"}} {n}')
            for name, about in _HELP.items():
                value = self._seconds[name] if name in self._seconds else self._sums[name]
                lines += _metric(f"edgellm_{name}_total", "counter", about, value)
        n_running, n_waiting = (sum(n) for n in zip(*((d.n_running, d.n_waiting) for d in desks.values()), strict=True))
        lines += _metric("edgellm_requests_running", "gauge", "Requests that are answered now.", n_running)
        lines += _metric("edgellm_requests_queued", "gauge", "Requests that wait.", n_waiting)
        return "\n".join([*lines, *_of_models(desks)]) + "\n"


def _of_models(models: Iterable[Offered]) -> Iterator[str]:
    rows: dict[tuple[str, str, str], Callable[[Offered], int]] = {
        ("model_loaded", "gauge", "Whether the model is loaded."): lambda model: model.state == "loaded",
        ("model_loads_total", "counter", "How often it was loaded."): lambda model: model.n_loads,
        ("model_unloads_total", "counter", "How often it was let go."): lambda model: model.n_unloads,
    }
    for (name, kind, about), value in rows.items():
        yield f"# HELP edgellm_{name} {about}"
        yield f"# TYPE edgellm_{name} {kind}"
        for model in models:
            label = model.name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            yield f'edgellm_{name}{{model="{label}"}} {int(value(model))}'


def _metric(name: str, kind: str, about: str, value: float) -> list[str]:
    return [
        f"# HELP {name} {about}",
        f"# TYPE {name} {kind}",
        f"{name} {value:g}" if kind == "gauge" else f"{name} {value}",
    ]
