"""Another file of the same drafter for an engine that runs: its target stays as it is, with all that it has read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgellm.runtime.backends.base import LoadError
from edgellm.runtime.bringup.load import LoadedDraft, open_draft, proposer_of
from edgellm.runtime.drafters.base import NoDrafter
from edgellm.runtime.engine import Engine


def with_draft_file(engine: Engine, draft: Path, adapter_sha256: str | None) -> Engine:
    """An engine that shares the target, its context and the measured costs, and drafts with another file.

    The one that is given is as it was, until one of the two is put away by `close_drafter`; the target is closed with
    either. They are not used at once.

    Args:
        draft: the same drafter with other weights, as `edgellm adapt` makes one: vocabulary and sizes are the same.
        adapter_sha256: of the adapter that is merged into it; None for the plain one.

    Raises:
        LoadError: it cannot be loaded, or nothing drafts so far.
    """
    controller, state, match = engine.controller, engine.pair_state, engine.pair
    if controller is None or state is None or match is None:
        raise LoadError("no drafter is loaded that could be exchanged")
    options = replace(engine.options, draft_adapter=adapter_sha256)
    loaded = open_draft(engine, draft, options, [], [], known=match)
    try:
        state = state.with_draft(draft, options)
        drafter = controller.with_model(proposer_of(engine, loaded, options, state, engine.warnings))
        state.attach(drafter)
    except BaseException:
        _close(loaded)
        raise
    return replace(
        engine,
        options=options,
        drafter=drafter,
        draft_model=loaded.model,
        draft_template=loaded.template,
        pair_state=state,
    )


def without_drafter(engine: Engine) -> Engine:
    """An engine that shares the target and drafts nothing; the one that is given must not be used again."""
    close_drafter(engine)
    return replace(engine, drafter=NoDrafter(), draft_model=None, draft_template=None)


def close_drafter(engine: Engine) -> None:
    """Free it, the target left alone; what it learnt is kept. The engine must not be used again."""
    engine.save()
    engine.drafter.close()
    if engine.draft_model is not None:
        engine.draft_model.close()


def _close(loaded: LoadedDraft) -> None:
    loaded.backend.close()
    loaded.model.close()
