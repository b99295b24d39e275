"""The paths, and what answers each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from edgellm.app.offered import Offered
from edgellm.server import page
from edgellm.server.anthropic_call import counted, read_anthropic
from edgellm.server.anthropic_wire import AnthropicWire
from edgellm.server.chat_call import read_chat
from edgellm.server.chat_wire import ChatWire
from edgellm.server.completion_call import read_completion
from edgellm.server.completion_wire import CompletionWire
from edgellm.server.embeddings import read_embeddings
from edgellm.server.errors import told
from edgellm.server.guard import Guard
from edgellm.server.request_log import RequestLog
from edgellm.server.response_call import read_response
from edgellm.server.response_wire import ResponseWire
from edgellm.server.service import GONE, Service
from edgellm.server.texts import detokenized, tokenized, tokenizer_info

Endpoint = Callable[[Request], Awaitable[Response]]


def application(service: Service) -> ASGIApp:
    """The whole server as an ASGI application."""
    embeddings = partial(read_embeddings, count=service.metrics.count_embedded)
    endpoints: list[tuple[str, str, Endpoint]] = [
        ("GET", "/models", _models(service)),
        ("GET", "/models/{name:path}", _model(service)),
        ("POST", "/chat/completions", lambda request: service.answer(request, read_chat, ChatWire)),
        ("POST", "/completions", lambda request: service.answer(request, read_completion, CompletionWire)),
        ("POST", "/responses", lambda request: service.answer(request, read_response, ResponseWire)),
        ("POST", "/messages", lambda request: service.answer(request, read_anthropic, AnthropicWire)),
        ("POST", "/messages/count_tokens", lambda request: service.simple(request, counted)),
        ("POST", "/embeddings", lambda request: service.work(request, embeddings)),
        ("POST", "/tokenize", lambda request: service.simple(request, tokenized)),
        ("POST", "/detokenize", lambda request: service.simple(request, detokenized)),
        ("GET", "/tokenizer_info", lambda request: service.about_first(request, tokenizer_info)),
        ("GET", "/health", _health),
        ("GET", "/metrics", _metrics(service)),
    ]
    routes = [
        Route(prefix + path, _told(endpoint), methods=[method])
        for prefix in ("", "/v1")
        for method, path, endpoint in endpoints
    ]
    routes = [*page.routes(), *routes]
    handlers: dict[Any, Any] = dict.fromkeys((400, 404, 405), _on_error)
    app = Starlette(routes=routes, exception_handlers=handlers)
    _keep_paths(app.router)
    guarded = Guard(app, service.settings, service.metrics.count_request)
    return RequestLog(guarded, service.listener.note) if service.settings.logs_requests else guarded


def _keep_paths(router: Router) -> None:
    router.redirect_slashes = False  # a redirected POST loses its body in many clients


def _told(endpoint: Endpoint) -> Endpoint:
    """Failures become answers."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=GONE)
        except Exception as error:
            return told(error).response(request.url.path)

    return answered


async def _on_error(request: Request, error: Exception) -> Response:
    return told(error).response(request.url.path)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _metrics(service: Service) -> Endpoint:
    async def metrics(request: Request) -> Response:
        text = service.metrics.to_text(service.desks)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    return metrics


def _models(service: Service) -> Endpoint:
    async def models(request: Request) -> Response:
        data = [_described(service, name, service.models.get(name)) for name in service.models.names]
        return JSONResponse({"object": "list", "data": data})

    return models


def _model(service: Service) -> Endpoint:
    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(_described(service, name, service.models.get(name)))

    return model


def _described(service: Service, name: str, model: Offered) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "edgellm",
        "status": {"value": model.state},  # as llama.cpp's server has it
        "meta": {"n_ctx": model.n_ctx, "n_parallel": model.n_parallel, "n_vocab": model.n_vocab},
    }
