"""What is said of a pair as it is loaded: notes for who wants details, warnings for all."""

from __future__ import annotations

from edgellm.memory.plan import MemoryPlan
from edgellm.runtime.backends.base import Backend
from edgellm.runtime.backends.llama_cpp import LlamaBackend
from edgellm.runtime.backends.llama_model import LlamaModel
from edgellm.runtime.bringup.agreement import agreement
from edgellm.runtime.bringup.exactness import exact_width
from edgellm.runtime.bringup.loading import Model
from edgellm.runtime.bringup.planning import EngineOptions, trimmed
from edgellm.runtime.text.full_vocabulary import is_trimmed
from edgellm.runtime.text.template import ChatTemplate


def about_target(
    model: Model, template: ChatTemplate, refusal: str, plan: MemoryPlan | None, options: EngineOptions
) -> tuple[list[str], list[str]]:
    """Notes and warnings on a target as it is loaded."""
    notes = [*model.notes]
    notes += [f"{lora.path.name} is applied, at {lora.scale:g} times its strength" for lora in options.loras]
    if template.reads_last:
        notes.append(f"{model.path.name} has an encoder: it reads each message alone, and nothing that was said before")
    return notes, [*_trims(plan), *about_template(model, template, refusal)]


def _trims(plan: MemoryPlan | None) -> list[str]:
    """What a plan gave up that a user must know of."""
    if plan is None:
        return []
    trims = trimmed(plan)
    return [*plan.lost, *([f"to fit {plan.limit.name}: {', '.join(trims)}"] if trims else [])]


def agreeing_draft(backend: Backend, exact: bool, notes: list[str], warnings: list[str]) -> int:
    """The longest draft whose passes agree with single tokens: in every bit, or, on a GPU, nearly."""
    found = agreement(backend) if isinstance(backend, LlamaBackend) and backend.model.options.placed else None
    if found is not None and not exact:
        notes.append(
            f"passes of up to {found.n_quiet} tokens move a logit by {max(found.changes[: found.n_quiet]):.3f}"
        )
        return found.n_quiet - 1
    width = found.n_exact if found is not None else exact_width(backend)
    if width > 1:
        notes.append(f"exact: passes of 1 to {width} tokens agree bit for bit here")
    else:
        warnings.append("exact: no two pass widths agree bit for bit here, so nothing is drafted")
    return width - 1


def about_vocabulary(model: LlamaModel) -> list[str]:
    name, full = model.path.name, model.full_vocabulary
    if full is not None:
        return [f"{name} reads all of {full.header.path.name} and writes {len(full.kept):,} tokens of it"]
    if is_trimmed(model.header):
        return [f"{name} has no file of words beside it, so it reads with the tokens that it kept"]
    return []


def about_template(model: Model, template: ChatTemplate, refusal: str) -> list[str]:
    name = template.fallback or "plain document"
    if refusal:
        return [f"{model.path.name}: {refusal}; the {name} format is used instead"]
    if template.fallback:
        return [f"{model.path.name} carries no chat template: the {name} format is used"]
    return []
