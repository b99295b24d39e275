"""Failures in the shape that clients of OpenAI's API read, and in that of Anthropic's on their paths."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from edgellm.app.served_models import NotServed, Stopped
from edgellm.memory.errors import USAGE, EdgellmError
from edgellm.memory.plan import DoesNotFit
from edgellm.runtime.backends.base import PromptTooLong
from edgellm.runtime.text.steps import TemplateError
from edgellm.server.request_log import shown

INVALID, SERVER = "invalid_request_error", "server_error"
_ANTHROPIC = ("/messages", "/messages/count_tokens")  # paths of their form
_ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_LOG = logging.getLogger("edgellm.server")


class ApiError(EdgellmError):
    """A request that is not answered."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """
        Args:
            param: the field that it is about.
            more: further fields of the error object.
        """
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self._fields = {"message": message, "type": kind, "param": param, "code": code, **more}

    def to_json(self) -> dict[str, Any]:
        return {"error": self._fields}

    def response(self, path: str) -> Response:
        """In the shape that clients of this path read."""
        told = self.to_anthropic() if path.endswith(_ANTHROPIC) else self.to_json()
        return JSONResponse(told, self.status, headers=self.headers)

    def to_anthropic(self) -> dict[str, Any]:
        kind = _ANTHROPIC_KINDS.get(self.status, "api_error" if self.status >= 500 else INVALID)
        return {"type": "error", "error": {"type": kind, "message": self._fields["message"]}}


def invalid(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    """A request that has to be changed."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, *, retry_s: int = 1) -> ApiError:
    """Not now."""
    return ApiError(503, message, kind="unavailable_error", headers={"retry-after": str(retry_s)})


def told(error: BaseException) -> ApiError:
    """A failure as the client is told of it. What nobody expected is logged, and its details stay here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NotServed):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, PromptTooLong):
        return _too_long(error)
    if isinstance(error, HTTPException):
        return _of_routing(error)
    if isinstance(error, TemplateError) or (isinstance(error, EdgellmError) and error.exit_code == USAGE):
        return invalid(str(error))
    if isinstance(error, Stopped):
        return unavailable(str(error))
    final = {"x-should-retry": "false"}
    if isinstance(error, DoesNotFit):
        return ApiError(503, str(error), kind="unavailable_error", code="model_does_not_fit", headers=final)
    if isinstance(error, EdgellmError):
        _LOG.error("a request failed: %s", shown(str(error)))
        return ApiError(500, str(error), kind=SERVER, headers=final)
    _LOG.error("a request failed: %s: %s", type(error).__name__, shown(str(error)), exc_info=_debugged(error))
    return ApiError(500, "the server failed; its log says more", kind=SERVER, headers=final)


def _too_long(error: PromptTooLong) -> ApiError:
    # LangChain and LiteLLM know this failure by the first words, not by its code.
    least = "at least " if error.at_least else ""
    message = (
        f"the prompt is too long: {least}{error.n_prompt:,} tokens, and the context holds {error.n_ctx:,}; shorten it"
    )
    return ApiError(
        400,
        f"{message}, or start the server with a larger --ctx",
        kind="exceed_context_size_error",
        code="context_length_exceeded",
        n_prompt=error.n_prompt,
        n_ctx=error.n_ctx,
    )


def _of_routing(error: HTTPException) -> ApiError:
    sentences = {404: "there is no such path here: see /v1/models", 405: "this path takes another method"}
    message = sentences.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiError(error.status_code, message, code=code, headers=error.headers)


def _debugged(error: BaseException) -> BaseException | None:
    return error if os.environ.get("EDGELLM_DEBUG") else None
