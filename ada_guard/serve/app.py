"""The HTTP face of a sidecar: routes, and nothing that they do. See `ada_guard.sidecar.wire` for the messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from ada_guard.checking import Checker
from ada_guard.policy import Policy
from ada_guard.serve.faults import Refused, on_invalid, on_refused, on_status
from ada_guard.serve.middleware import Entrance
from ada_guard.serve.process import require_key
from ada_guard.serve.service import Service
from ada_guard.serve.settings import ServeSettings
from ada_guard.sidecar.protocol import Sidecar
from ada_guard.sidecar.wire import (
    Advance,
    Advanced,
    CheckRequest,
    FaultMessage,
    Info,
    Open,
    Opened,
    Status,
    VerdictMessage,
)

__all__ = ["create_app"]

T = TypeVar("T")

_FAULTS: dict[int | str, dict[str, Any]] = {
    401: {"model": FaultMessage, "description": "The API key is missing or wrong."},
    413: {"model": FaultMessage, "description": "The request is too long."},
    422: {
        "model": FaultMessage,
        "description": "Not what it should be, or it cannot be shown to the model.",
    },
    503: {"model": FaultMessage, "description": "There is no room; Retry-After says when to come back."},
}
_SESSION_FAULTS: dict[int | str, dict[str, Any]] = {
    404: {"model": FaultMessage, "description": "`unknown_session`: make it again."},
    409: {"model": FaultMessage, "description": "Not the session's next request: make the session again."},
}


def create_app(
    sidecar: Sidecar,
    *,
    api_key: str | None = None,
    settings: ServeSettings | None = None,
    checker: Checker | None = None,
    policy: Policy | None = None,
) -> FastAPI:
    """The ASGI app of a sidecar server.

    Args:
        sidecar: What judges, in this process: a `LocalSidecar`. It is closed when the app shuts down.
        api_key: Asked for as bearer token on all routes but ``/healthz``, ``/readyz`` and the schema. None: nobody is
            asked, which is for loopback only.
        settings: Bounds and time limits.
        checker: Who decides ``/v1/check``; None: the probe if there is one, else rethink.
        policy: Its schedule.
    """
    require_key(api_key)
    settings = settings or ServeSettings()
    service = Service(sidecar, settings, checker=checker, policy=policy)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="ada-guard sidecar",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        # FastAPI's own spans and records, where OpenTelemetry is set up, name sessions and show messages of exceptions.
        telemetry={"tracing": False, "logs": False, "operation_spans": False},
        exception_handlers={
            Refused: on_refused,
            RequestValidationError: on_invalid,
            HTTPException: on_status,
        },
    )
    app.add_middleware(
        Entrance,
        api_key=api_key,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        metrics=service.metrics,
    )
    app.state.service = service
    _add_sessions(app, service)
    _add_rest(app, service)
    return app


def _add_sessions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/sessions", responses=_FAULTS, summary="Begin a session")
    async def open_session(request: Request, message: Open) -> Opened:
        async def opened() -> Opened:
            session = await service.sessions.open(message)
            return await service.opened(session.name, session.following)

        # Nobody would ever close a session whose name has reached nobody.
        return await _while_there(request, opened(), undo=lambda made: service.sessions.close(made.session))

    @app.post(
        "/v1/sessions/{session}/advance",
        response_model=Advanced,
        responses=_FAULTS | _SESSION_FAULTS,
        summary="Extend a session and make checks, in one round trip",
    )
    async def advance(request: Request, session: str, message: Advance) -> Response:
        answer = await _while_there(request, service.sessions.advance(session, message, service.metrics))
        # Written by pydantic itself: this is the one route that is called all the time.
        return Response(answer.model_dump_json(exclude_defaults=True), media_type="application/json")

    @app.delete("/v1/sessions/{session}", status_code=204, responses={401: _FAULTS[401]}, summary="Forget a session")
    async def close_session(session: str, passed_tokens: Annotated[int, Query(ge=0)] = 0) -> Response:
        await service.sessions.close(session, passed_tokens=passed_tokens)
        return Response(status_code=204)


def _add_rest(app: FastAPI, service: Service) -> None:
    @app.post("/v1/check", responses=_FAULTS, summary="Judge a finished answer")
    async def check(request: Request, message: CheckRequest) -> VerdictMessage:
        return await _while_there(request, service.check(message))

    @app.get("/v1/info", responses={401: _FAULTS[401]}, summary="What this server is")
    async def info() -> Info:
        return await service.info()

    @app.get("/healthz", summary="Whether the process is up")
    async def healthz() -> Status:
        return Status(status="ok")

    @app.get("/readyz", responses={503: {"model": Status}}, summary="Whether a check can be made: one is made")
    async def readyz() -> JSONResponse:
        why = await service.not_ready()
        status = Status(status="ok" if why is None else "not_ready", reason=why)
        return JSONResponse(status.model_dump(exclude_none=True), status_code=200 if why is None else 503)

    @app.get("/metrics", response_class=Response, summary="Figures for Prometheus")
    async def metrics() -> Response:
        return Response(await asyncio.to_thread(service.metrics.text), media_type=CONTENT_TYPE_LATEST)


async def _while_there(
    request: Request, work: Coroutine[Any, Any, T], *, undo: Callable[[T], Awaitable[None]] | None = None
) -> T:
    """The outcome of work that is cancelled as soon as the client has left, and undone if it was too late for that."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if not task.cancelled():
        outcome = task.result()
        if undo is None or not leaving.done() or leaving.cancelled():
            return outcome
        await undo(outcome)
    raise Refused(499, "client_left", "the client has left")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
