"""`edgellm check`: how well a drafter fits a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from edgellm.cli._output import out

if TYPE_CHECKING:
    from edgellm.app.evaluation import PairReport
    from edgellm.runtime.text.vocabulary_match import Overlap


def check(
    target: str = typer.Argument(help="Target: a catalogue name, user/repo[:QUANT], or a file."),
    draft: str = typer.Argument(help="Drafter, of any vocabulary."),
    measure: bool = typer.Option(
        False, "--measure", envvar="EDGELLM_MEASURE", help="Let the pair answer four short questions."
    ),
    offline: bool = typer.Option(False, "--offline", envvar="EDGELLM_OFFLINE", help="Use only what is on this disk."),
    json_: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say how well a drafter fits a target: their vocabularies, their sizes and, if measured, what is accepted."""
    from edgellm.app.evaluation import evaluate
    from edgellm.app.references import resolve
    from edgellm.cli._listener import TERMINAL

    files = [resolve(reference, offline=offline, listener=TERMINAL) for reference in (target, draft)]
    report = evaluate(*files, measure=measure, listener=TERMINAL)
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
    if measured := report.measured:
        rows.append(
            (
                "measured",
                f"{measured.acceptance:.0%} of drafted tokens accepted, {measured.tokens_per_round:.2f} tokens a "
                f"pass, {measured.tokens_per_s:.1f} tok/s, {measured.draft_share:.0%} of the time in the drafter",
            )
        )
    for label, value in rows:
        out.text(f"{label:<16}{value}")
    out.text(report.verdict.sentence)


def _split(overlap: Overlap, whose: str) -> str:
    if not overlap.n_split:
        return "none"
    return f"{overlap.n_split:,} tokens become {overlap.mean_split:.2f} {whose} on average"
