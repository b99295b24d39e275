"""`edgellm doctor`: what a bug report needs, in one screen, and what is wrong, in a sentence each."""

from __future__ import annotations

from typing import Any

import typer

from edgellm.cli._output import out


def doctor(
    json_: bool = typer.Option(False, "--json", envvar="EDGELLM_JSON", help="Facts as JSON: bytes and seconds."),
    measure: bool = typer.Option(
        True,
        "--measure/--no-measure",
        envvar="EDGELLM_MEASURE",
        help="Time this machine's memory and multipliers, which takes a second.",
    ),
) -> None:
    """Show versions, library, kernels, memory, folders and models, and say what is wrong with any of them."""
    from edgellm.app.facts import Facts

    facts = Facts(measured=measure)
    if json_:
        out.json({**facts.values, "problems": facts.problems})
        return
    rows = _rows(facts.values)
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        out.text(f"{label:<{width}}  {text}")
    out.text("")
    for problem in facts.problems:
        out.text(f"! {problem}")
    if not facts.problems:
        out.text("nothing is wrong that could be seen from here")


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each fact that could be gathered."""
    rows = [
        ("edgellm", _of(facts, "{version}, Python {python}, {system}")),
        ("packages", ", ".join(f"{name} {found or '-'}" for name, found in facts.get("packages", {}).items())),
        ("CPU", _of(facts, "{cpu}, {n_cores_usable} cores for this program")),
        ("instructions", ", ".join(facts.get("features", ())) or "none that the kernels know"),
        ("kernels", _of(facts, "{kernels}: {reason}")),
        ("", f"run here: {', '.join(facts.get('variants', ())) or 'none'}"),
        ("", f"take {', '.join(facts.get('weight_types', ())) or 'nothing'}"),
        ("extra buffers", _extra_buffers(facts.get("extra_buffers"))),
        ("llama.cpp", _library(facts.get("library"))),
        ("memory", _memory(facts.get("memory"))),
        *(("", line) for line in _limits(facts.get("memory"))),
        *((name, _folder(folder)) for name, folder in facts.get("folders", {}).items()),
        ("models", _models(facts.get("models"))),
        *_speed(facts.get("roofline")),
    ]
    return [(label, text) for label, text in rows if text]


def _of(facts: dict[str, Any], pattern: str) -> str:
    try:
        return pattern.format_map(facts)
    except KeyError:
        return ""


def _extra_buffers(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    names = ", ".join(found["buffers"]) or "none"
    return f"{names} ({'used' if found['usable'] else 'left out'}: {found['reason']})"


def _library(found: dict[str, Any] | None) -> str:
    if found is None:
        return "cannot be used"
    built = " ".join(part.split("=")[0].split(":")[-1].strip() for part in found["built"].split("|") if "= 1" in part)
    agree = "structures as the bindings have them" if not found["structures"] else "structures differ"
    return f"{found['version']}, {agree}; built for {built}"


def _memory(found: dict[str, Any] | None) -> str:
    from edgellm.memory.units import format_bytes

    if found is None:
        return ""
    return f"{format_bytes(found['total_bytes'])}, {format_bytes(found['usable_bytes'])} free for a program"


def _limits(found: dict[str, Any] | None) -> list[str]:
    from edgellm.memory.units import format_bytes

    limits = found["limits"] if found else []
    return [f"limit {format_bytes(limit['limit_bytes'])} by {limit['where']}" for limit in limits]


def _folder(found: dict[str, Any]) -> str:
    from edgellm.memory.units import format_bytes

    rights = "" if found["writable"] else ", not writable"
    return (
        f"{found['path']} ({'' if found['exists'] else 'to be made, '}{format_bytes(found['free_bytes'])} free{rights})"
    )


def _models(found: list[dict[str, Any]] | None) -> str:
    from edgellm.memory.units import format_bytes

    if found is None:
        return ""
    return ", ".join(f"{model['reference']} ({format_bytes(model['n_bytes'])})" for model in found) or "none here"


def _speed(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    return [
        (
            "speed",
            f"reads {found['bytes_per_s'] / 1e9:.1f} GB/s, multiplies {found['macs_per_s'] / 1e9:.0f} G int8 a second: "
            f"up to {found['n_tokens']:.0f} tokens of Q4_K for the price of reading the weights once",
        )
    ]
