"""`edgellm check`: how well a drafter fits a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.export.obtain.store import ModelFile
    from edgellm.runtime.bringup.loading import Model
    from edgellm.runtime.text.vocabulary_match import Match, Overlap

# Short, of several kinds, and ours; enough to tell a good pair from a bad one, not to quote.
_PROMPTS = (
    "Write a Python function that counts the vowels in a string.",
    "A baker sells 14 loaves in the morning and twice as many in the afternoon. How many are sold that day?",
    "Explain to a child in three sentences why it rains.",
    "Name the months that have 30 days, in a comma-separated list.",
)
_N_TOKENS = 48  # an answer
_MIN_RATIO = 5.0  # of bytes; a drafter that is nearer to its target in cost can hardly win


def check(
    target: Annotated[
        str,
        typer.Argument(
            envvar="EDGELLM_MODEL", show_envvar=False, help="Target: a catalogue name, user/repo[:QUANT], or a file."
        ),
    ],
    draft: Annotated[
        str, typer.Argument(envvar="EDGELLM_DRAFT", show_envvar=False, help="Drafter, of any vocabulary.")
    ],
    measure: Annotated[bool, opt.option("--measure", help="Let the pair answer four short questions.")] = False,
    offline: opt.Offline = False,
    json_: opt.Json = False,
) -> None:
    """Say how well a drafter fits a target: their vocabularies, their sizes and, if measured, what is accepted."""
    from edgellm.cli._models import resolve
    from edgellm.cli._terminal import waiting
    from edgellm.runtime.backends.base import LoadError
    from edgellm.runtime.backends.llama_cpp import ModelOptions
    from edgellm.runtime.bringup.loading import open_model
    from edgellm.runtime.text.vocabulary_match import match, overlap

    files = resolve(target, offline=offline), resolve(draft, offline=offline)
    models = [open_model(file.path, ModelOptions(vocabulary_only=True)) for file in files]
    for model in models:
        if not model.n_params:
            raise LoadError(f"{model.path} holds a vocabulary only: there are no weights in it to run")
    ours, theirs = (model.vocabulary for model in models)
    with waiting("comparing the vocabularies …"):
        matched, there, back = match(ours, theirs), overlap(ours, theirs), overlap(theirs, ours)
    facts = [_facts(file, model) for file, model in zip(files, models, strict=True)]
    for model in models:
        model.close()
    report = {
        "target": facts[0],
        "draft": facts[1],
        "same_vocabulary": matched.same,
        "reason": matched.reason,
        "n_shared": there.n_shared,
        "of_target": there.of_target,
        "of_draft": there.of_draft,
        "target_to_draft": {"n_split": there.n_split, "mean_split": there.mean_split},
        "draft_to_target": {"n_split": back.n_split, "mean_split": back.mean_split},
        "bytes_ratio": facts[0]["n_bytes"] / facts[1]["n_bytes"],
        "params_ratio": facts[0]["n_params"] / max(1, facts[1]["n_params"]),
        "measured": _measured(*files) if measure else None,
    }
    report["verdict"] = _verdict(report, there)
    if json_:
        out.json(report)
    else:
        _print(report, matched, there, back)


def _facts(file: ModelFile, model: Model) -> dict[str, Any]:
    return {
        "name": file.reference,
        "architecture": model.architecture,
        "n_tokens": model.vocabulary.n_tokens,
        "n_params": model.n_params,
        "n_bytes": file.n_bytes,
        "chat_template": model.chat_template is not None,
    }


def _measured(target: ModelFile, draft: ModelFile) -> dict[str, Any]:
    """What becomes of the drafter's proposals alone (nothing is copied), greedily and with the default length."""
    from edgellm.cli._terminal import waiting
    from edgellm.runtime.bringup.planning import EngineOptions
    from edgellm.runtime.conversation import ChatSession, Stats
    from edgellm.runtime.engine import load

    total = Stats()
    with (
        waiting("measuring …"),
        load(
            target.path, draft.path, EngineOptions(n_ctx=512, n_draft=4, fixed=True, copy=False, learn="off")
        ) as engine,
    ):
        session = ChatSession(engine)
        for prompt in _PROMPTS:
            session.clear()
            for _ in session.reply(prompt, max_tokens=_N_TOKENS):
                pass
            assert session.last is not None
            stats = session.last.stats
            for name in ("n_new", "n_rounds", "n_drafted", "n_accepted", "decode_s", "draft_s", "verify_s"):
                setattr(total, name, getattr(total, name) + getattr(stats, name))
        return {
            "n_draft": engine.n_draft,
            "acceptance": total.acceptance,
            "tokens_per_round": total.tokens_per_round,
            "tokens_per_s": total.tokens_per_s,
            "draft_share": total.draft_s / total.decode_s if total.decode_s else 0.0,
        }


def _verdict(report: dict[str, Any], there: Overlap) -> str:
    """One sentence. The drafter's price is its size; what it earns is known only when measured."""
    ratio, measured = report["bytes_ratio"], report["measured"]
    how = "in the target's own vocabulary" if report["same_vocabulary"] else "through translation"
    size = f"{ratio:.1f} times smaller"
    if ratio <= 1:
        return "Does not fit: the drafter is no smaller than the target, so it can only slow it down."
    if measured and not measured["acceptance"]:
        return "Does not fit: nothing of what the drafter proposed was accepted."
    earned = f", and gives {measured['tokens_per_round']:.1f} tokens a pass of the target" if measured else ""
    if ratio < _MIN_RATIO:
        return f"Doubtful: it drafts {how}{earned}, but is only {size}, so a draft costs much of what it saves."
    if measured and measured["tokens_per_round"] < 1.5:
        return f"Poor: the drafter is {size}, but agrees with the target too seldom{earned}."
    return f"Fits: it drafts {how}{earned}, and is {size}."


def _print(report: dict[str, Any], matched: Match, there: Overlap, back: Overlap) -> None:
    from edgellm.memory.units import format_bytes

    rows = [
        (
            role,
            f"{facts['name']}: {facts['n_params'] / 1e6:,.0f} M parameters, {format_bytes(facts['n_bytes'])}, "
            f"{facts['n_tokens']:,} tokens" + ("" if facts["chat_template"] else ", no chat template"),
        )
        for role, facts in (("target", report["target"]), ("drafter", report["draft"]))
    ]
    rows += [
        ("vocabulary", matched.reason),
        (
            "overlap",
            f"{there.n_shared:,} tokens spell the same bytes: {there.of_target:.0%} of the target's, "
            f"{there.of_draft:.0%} of the drafter's",
        ),
        ("target's rest", _split(there, "of the drafter's")),
        ("drafter's rest", _split(back, "of the target's")),
        ("size ratio", f"{report['bytes_ratio']:.1f} in bytes, {report['params_ratio']:.1f} in parameters"),
    ]
    if measured := report["measured"]:
        rows.append(
            (
                "measured",
                f"{measured['acceptance']:.0%} of drafted tokens accepted, {measured['tokens_per_round']:.2f} tokens a "
                f"pass, {measured['tokens_per_s']:.1f} tok/s, {measured['draft_share']:.0%} of the time in the drafter",
            )
        )
    for label, value in rows:
        out.text(f"{label:<16}{value}")
    out.text(report["verdict"])


def _split(overlap: Overlap, whose: str) -> str:
    if not overlap.n_split:
        return "none"
    return f"{overlap.n_split:,} tokens become {overlap.mean_split:.2f} {whose} on average"
