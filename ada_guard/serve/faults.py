"""Why a request is refused, and how that is said: a status, a word for programs and a line for people, never text."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ada_guard.sidecar import questions, wire
from ada_guard.sidecar.wire import Fault, FaultMessage

__all__ = ["Refused", "fault_response", "on_invalid", "on_refused", "on_status"]

_CODES = {404: "not_found", 405: "method_not_allowed", 400: "unreadable"}
_FIELDS = frozenset(
    name
    for model in (*vars(wire).values(), *vars(questions).values())
    if isinstance(model, type) and issubclass(model, BaseModel)
    for name in model.model_fields
)


class Refused(Exception):  # noqa: N818  # an answer, not a defect
    """A request that is not done.

    Attributes:
        status: Of the answer.
        code: A word for programs.
        retry_after_s: For the Retry-After header, in seconds.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


def fault_response(status: int, code: str, message: str, *, retry_after_s: int | None = None) -> JSONResponse:
    """The answer that says so."""
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    fault = FaultMessage(error=Fault(code=code, message=message))
    return JSONResponse(fault.model_dump(), status_code=status, headers=headers)


async def on_refused(request: Request, error: Exception) -> JSONResponse:
    """Answers a `Refused`."""
    del request
    assert isinstance(error, Refused)
    return fault_response(error.status, error.code, str(error), retry_after_s=error.retry_after_s)


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answers a message that is not what it should be: with the place in it, never with what stands there."""
    del request
    assert isinstance(error, RequestValidationError)
    finding = error.errors()[0]
    place = ".".join(_shown(step) for step in finding["loc"])
    return fault_response(422, "invalid_request", f"{place}: {finding['type']}")


async def on_status(request: Request, error: Exception) -> JSONResponse:
    """Answers what has no answer of its own, such as a path that does not exist."""
    del request
    assert isinstance(error, HTTPException)
    status = error.status_code
    return fault_response(status, _CODES.get(status, "failed"), f"the request was answered {status}")


def _shown(step: object) -> str:
    """A step of a place, if it is one of ours: the name of an unknown field is the client's own text."""
    return str(step) if isinstance(step, int) or step in _FIELDS or step == "body" else "?"
