"""`edgellm check`: how well a drafter fits a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.cli import _options as opt
from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.app.evaluation import Acceptance, PairReport
    from edgellm.app.head_evaluation import HeadReport
    from edgellm.runtime.text.vocabulary_match import Overlap


def check(
    target: Annotated[
        str,
        typer.Argument(
            envvar="EDGELLM_MODEL", show_envvar=False, help="Target: a catalogue name, user/repo[:QUANT], or a file."
        ),
    ],
    draft: Annotated[
        str,
        typer.Argument(
            envvar="EDGELLM_DRAFT",
            show_envvar=False,
            help="Drafter, of any vocabulary; `mtp` for the head inside the target's file.",
        ),
    ],
    measure: Annotated[bool, opt.option("--measure", help="Let the pair answer four short questions.")] = False,
    draft_adapter: opt.DraftAdapter = None,
    offline: opt.Offline = False,
    json_: opt.Json = False,
) -> None:
    """Say how well a drafter fits a target: their vocabularies, their sizes and, if measured, what is accepted."""
    from edgellm.app.evaluation import evaluate
    from edgellm.app.head_evaluation import evaluate_head
    from edgellm.app.own_heads import is_own
    from edgellm.app.references import resolve
    from edgellm.cli._listener import TERMINAL

    if is_own(draft):
        head = evaluate_head(resolve(target, offline=offline, listener=TERMINAL), measure=measure, listener=TERMINAL)
        return out.json(head.to_json()) if json_ else _print_head(head)
    files = [resolve(reference, offline=offline, listener=TERMINAL) for reference in (target, draft)]
    report = evaluate(*files, measure=measure, draft_adapter=draft_adapter, listener=TERMINAL)
    if json_:
        out.json(report.to_json())
    else:
        _print(report)


def _print(report: PairReport) -> None:
    from edgellm.memory.units import format_bytes

    there, back = report.to_draft, report.to_target
    rows = [
        (
            role,
            f"{facts.name}: {facts.n_params / 1e6:,.0f} M parameters, {format_bytes(facts.n_bytes)}, "
            f"{facts.n_tokens:,} tokens" + ("" if facts.chat_template else ", no chat template"),
        )
        for role, facts in (("target", report.target), ("drafter", report.draft))
    ]
    rows += [
        ("vocabulary", report.match.reason),
        (
            "overlap",
            f"{there.n_shared:,} tokens spell the same bytes: {there.of_target:.0%} of the target's, "
            f"{there.of_draft:.0%} of the drafter's",
        ),
        ("target's rest", _split(there, "of the drafter's")),
        ("drafter's rest", _split(back, "of the target's")),
        ("size ratio", f"{report.bytes_ratio:.1f} in bytes, {report.params_ratio:.1f} in parameters"),
    ]
    if report.adapter is not None:
        rows.append(("adapter", str(report.adapter)))
    if measured := report.measured:
        rows.append(("measured", _measured(measured)))
    for label, value in rows:
        out.text(f"{label:<16}{value}")
    out.text(report.verdict.sentence)


def _print_head(report: HeadReport) -> None:
    from edgellm.memory.units import format_bytes

    target = report.target
    rows = [
        ("target", f"{target.name}: {target.n_params / 1e6:,.0f} M parameters, {format_bytes(target.n_bytes)}"),
        (
            "draft head",
            f"{report.n_params / 1e6:,.1f} M parameters of them, {format_bytes(report.n_bytes)}, and "
            f"{format_bytes(report.shared_bytes)} of the target's that it reads too",
        ),
        ("vocabulary", "the target's own"),
        ("size ratio", f"{report.bytes_ratio:.1f} in bytes that a token reads"),
    ]
    if report.measured is not None:
        rows.append(("measured", _measured(report.measured)))
    for label, value in rows:
        out.text(f"{label:<16}{value}")
    out.text(report.verdict.sentence)


def _measured(measured: Acceptance) -> str:
    return (
        f"{measured.acceptance:.0%} of drafted tokens accepted, {measured.tokens_per_round:.2f} tokens a "
        f"pass, {measured.tokens_per_s:.1f} tok/s, {measured.draft_share:.0%} of the time in the drafter"
    )


def _split(overlap: Overlap, whose: str) -> str:
    if not overlap.n_split:
        return "none"
    return f"{overlap.n_split:,} tokens become {overlap.mean_split:.2f} {whose} on average"
