"""`edgellm complete`: go on with a text in several ways, for keyboards, editors and scripts."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._sampling_options import ChosenSampling, takes_sampling

if TYPE_CHECKING:
    from edgellm.app.loading import Pair
    from edgellm.runtime.parallel.completions import Completing, Completions
    from edgellm.runtime.text.vocabulary import Vocabulary

MAX_N = 64
_ONE_LINE = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})
N_TOKENS = 16  # of a continuation, where nothing is said

N = Annotated[int, opt.option("--n", min=1, max=MAX_N, metavar="N", help="Continuations, all different.")]
Suffix = Annotated[
    str, opt.option("--suffix", metavar="TEXT", help="What stands behind the gap, of models that fill one.")
]


@takes_sampling(temperature=0.8)
def complete(
    model: opt.Model = None,
    prompt: opt.Prompt = None,
    suffix: Suffix = "",
    n: N = 1,
    max_tokens: opt.MaxTokens = N_TOKENS,
    stop: opt.Stop = [],  # noqa: B006
    draft: opt.Draft = "none",
    sampling: ChosenSampling = {},  # noqa: B006
    ctx: opt.Ctx = None,
    kv: opt.Kv = None,
    budget: opt.Budget = None,
    threads: opt.Threads = None,
    main_device: opt.MainDevice = "auto",
    gpu_layers: opt.GpuLayers = -1,
    draft_device: opt.DraftDevice = "auto",
    draft_gpu_layers: opt.DraftGpuLayers = -1,
    offline: opt.Offline = False,
    json_: opt.Json = False,
) -> None:
    """Go on with a text as it is (--prompt, or piped in), without a chat template, in one way or in several at once.

    Each is a sample of the model, and no two are the same. The likeliest comes first, one a line where there are more.
    """
    from edgellm.app.defaults import asked_bytes, cache_type, drafting_options
    from edgellm.app.loading import prepare
    from edgellm.cli._listener import TERMINAL
    from edgellm.runtime.bringup.planning import EngineOptions
    from edgellm.runtime.text.fill_in import gone_on_from

    text = _given(prompt)
    options = EngineOptions(
        n_ctx=ctx,
        **drafting_options(None, learn=False, assume_cost=None, merged_probs=False),
        kv=cache_type(kv),
        n_threads=threads,
        main_device=main_device,
        n_gpu_layers=gpu_layers,
        draft_device=draft_device,
        n_draft_gpu_layers=draft_gpu_layers,
        budget_bytes=asked_bytes(budget),
        n_parallel=n,
    )
    pair = prepare(model, draft, options, offline=offline, listener=TERMINAL)
    with contextlib.ExitStack() as opened:
        drawing, vocabulary = _open(pair, opened)
        tokens = gone_on_from(vocabulary, text, suffix)
        made = _complete(drawing, tokens, n, sampling, max_tokens or N_TOKENS, stop)
    _tell(made, pair, n, as_json=json_)


def _given(prompt: str | None) -> str:
    if prompt is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("there is nothing to go on from: give --prompt TEXT, or pipe a text in")
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    return prompt.encode("utf-8", "replace").decode("utf-8")


def _open(pair: Pair, opened: contextlib.ExitStack) -> tuple[Completing, Vocabulary]:
    """An engine for all continuations at once, or of one where the model serves no more."""
    from edgellm.cli._listener import TERMINAL
    from edgellm.runtime.backends.base import OneTextOnly
    from edgellm.runtime.parallel.completions import InTurn

    try:
        several = opened.enter_context(pair.open_parallel(TERMINAL))
        return several, several.first.model.vocabulary
    except OneTextOnly:
        one = replace(pair, options=replace(pair.options, n_parallel=1))
        engine = opened.enter_context(one.open(TERMINAL))
        return InTurn(engine), engine.model.vocabulary


def _complete(
    engine: Completing,
    tokens: Sequence[int],
    n: int,
    sampling: dict[str, Any],
    max_tokens: int,
    stop: list[str],
) -> Completions:
    from edgellm.cli._terminal import interrupts
    from edgellm.runtime.parallel.completions import complete as draw
    from edgellm.runtime.sampling import Sampling

    cancel = threading.Event()
    with interrupts(cancel):
        return draw(engine, tokens, n, sampling=Sampling(**sampling), max_tokens=max_tokens, stop=stop, cancel=cancel)


def _tell(made: Completions, pair: Pair, n: int, *, as_json: bool) -> None:
    from dataclasses import asdict

    if len(made.found) < n:
        out.note(f"{len(made.found)} of {n}: {made.n_drawn} were drawn, and no other came up")
    if as_json:
        told = {"model": pair.target.name, **asdict(made)}
        told["completions"] = told.pop("found")
        out.json(told)
    elif n == 1:
        out.text(made.found[0].text)
    else:
        for one in made.found:
            out.text(one.text.translate(_ONE_LINE))
