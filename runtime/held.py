"""What a request holds an answer to: a schema, a call, or calls beside words; and who reads the calls back."""

from __future__ import annotations

from edgellm.runtime.constraint import Constraint
from edgellm.runtime.request import Request
from edgellm.runtime.supports import SupportsGeneration
from edgellm.runtime.text.tool_stream import CallStream
from edgellm.runtime.text.tools import format_named


def call_stream(engine: SupportsGeneration, request: Request) -> CallStream | None:
    """Who finds calls in what the model writes; None where it is told of no tools."""
    if not request.offered:
        return None
    vocabulary = engine.model.vocabulary
    # A call that is forced is a bare object, whatever form the model would have chosen.
    form = format_named("json", vocabulary) if request.forces_a_call else engine.template.tool_format
    return CallStream(
        form,
        request.offered,
        vocabulary,
        only_first=not request.parallel_tool_calls,
        is_held=holds_calls(request),
    )


def holds_calls(request: Request) -> bool:
    """Whether calls are held to schemas, or the rest of the answer, and the model is free to choose."""
    may_choose = bool(request.offered) and not request.forces_a_call
    return may_choose and (request.constraint is not None or any(tool.strict for tool in request.offered))


def constraint_of(engine: SupportsGeneration, request: Request) -> Constraint | None:
    """What the answer is held to."""
    vocabulary = engine.model.vocabulary
    if request.forces_a_call:
        from edgellm.runtime.text.forced_calls import forced_call

        return forced_call(request.tools, request.tool_choice).of(vocabulary)
    if not holds_calls(request):
        return request.constraint
    from edgellm.runtime.text.guidance import Guidance
    from edgellm.runtime.text.strict_calls import strict_calls

    answer = request.constraint.grammar if isinstance(request.constraint, Guidance) else None
    if request.constraint is not None and answer is None:  # one of the caller's own, beside which nothing is said
        return request.constraint
    return strict_calls(request.offered, engine.template.tool_format, answer).of(vocabulary)
