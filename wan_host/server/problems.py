"""Errors as RFC 9457 problem details: every answer of 400 and above has this form, whoever made it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from wan_host.errors import (
    DeadlineExceeded,
    InvalidJob,
    PermanentError,
    QueueUnavailable,
    RetryableError,
    UnknownModel,
    UnsupportedRequest,
    WanHostError,
)

PROBLEM_TYPE = "application/problem+json"
_UNAVAILABLE_SECONDS = 5
_STATUS: tuple[tuple[type[WanHostError], int], ...] = (
    (InvalidJob, 422),
    (UnknownModel, 422),
    (UnsupportedRequest, 422),
    (QueueUnavailable, 503),
    (DeadlineExceeded, 504),
    (PermanentError, 502),
    (RetryableError, 503),
)
log = structlog.get_logger("wan_host.http")


class FieldProblem(BaseModel):
    """One thing that is wrong with a request: ``field`` is a dotted path, ``entry`` the place in a list of jobs, from 1."""

    detail: str
    field: str | None = None
    entry: int | None = None


class ProblemDetails(BaseModel):
    """RFC 9457. ``error_type`` is one of the documented error types, where one fits."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    error_type: str | None = None
    errors: list[FieldProblem] | None = None


class Problem(HTTPException):
    """Ends a request with a problem."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        error_type: str | None = None,
        errors: list[FieldProblem] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``detail`` is written for the person who sent the request."""
        super().__init__(status, detail, headers=headers)
        self.error_type, self.errors = error_type, errors


def document(
    status: int, detail: str, *, error_type: str | None = None, errors: list[FieldProblem] | None = None
) -> dict[str, Any]:
    """Return the JSON object of a problem."""
    title = HTTPStatus(status).phrase
    details = ProblemDetails(title=title, status=status, detail=detail, error_type=error_type, errors=errors)
    return details.model_dump(exclude_none=True)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's ``responses`` for these statuses."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Answer every exception with its problem."""

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        kind, errors = (error.error_type, error.errors) if isinstance(error, Problem) else (None, None)
        return _answer(document(error.status_code, str(error.detail), error_type=kind, errors=errors), error.headers)

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            FieldProblem(field=".".join(str(part) for part in item["loc"]), detail=str(item["msg"])) for item in error.errors()
        ]
        first = errors[0]
        return _answer(document(422, f"{first.field}: {first.detail}", errors=errors))

    @app.exception_handler(WanHostError)
    async def _known(_: Request, error: WanHostError) -> JSONResponse:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 503)
        headers = {"Retry-After": str(_UNAVAILABLE_SECONDS)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        return _answer(document(status, str(error), error_type=error.error_type), headers)

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("internal error", method=request.method, path=request.url.path, exc_info=error)
        return _answer(document(500, "the worker met an error of its own; its log says which", error_type="internal"))


def _answer(body: dict[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(body, status_code=body["status"], headers=dict(headers or {}), media_type=PROBLEM_TYPE)
