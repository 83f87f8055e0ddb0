"""The one map from our errors to answers: a status and {"detail": ...}, never a trace."""

import logging
import math
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from gaelp_tasks.errors import (
    BrokerUnavailable,
    BudgetExceeded,
    Conflict,
    DatabaseUnavailable,
    GaelpError,
    IdempotencyConflict,
    InvalidInvocation,
    NotAllowed,
    NotFound,
    NotSignedIn,
    PolicyViolated,
    QueueFull,
    QuotaExceeded,
)
from gaelp_tasks.models.schedule import InvalidSchedule

__all__ = ["HANDLERS", "STATUS", "answer"]

logger = logging.getLogger(__name__)

#: the first row that fits counts
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotSignedIn, 401),
    (BudgetExceeded, 402),
    (NotAllowed, 403),
    (PolicyViolated, 403),
    (NotFound, 404),
    (Conflict, 409),
    (IdempotencyConflict, 409),
    (QuotaExceeded, 409),
    (InvalidInvocation, 422),
    (InvalidSchedule, 422),
    (QueueFull, 429),
    (BrokerUnavailable, 503),
    (DatabaseUnavailable, 503),
)
MOST_TOLD = 10  #: mistakes of one body
RETRY_S = 5  #: of what is away
#: what is told of them: where they are concerns nobody outside
AWAY: dict[type[Exception], str] = {
    BrokerUnavailable: "Redis does not answer the API now; try again.",
    DatabaseUnavailable: "The database does not answer the API now; try again.",
}
OWN_FAULT = "Something went wrong here; the log has it under this request's id."


def answer(error: Exception) -> JSONResponse:
    """What is answered to an error of ours; one without a row is our own fault."""
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    if status == 500:  # noqa: PLR2004
        if isinstance(error, GaelpError):  # others are raised on, and logged further out
            logger.error("An error without a status: %s", error, exc_info=error)
        return JSONResponse({"detail": OWN_FAULT}, status)
    headers, detail = {}, str(error)
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    elif status == 503:  # noqa: PLR2004
        logger.warning("%s", error)
        headers["Retry-After"] = str(RETRY_S)
        detail = next(told for kind, told in AWAY.items() if isinstance(error, kind))
    elif status == 401:  # noqa: PLR2004
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"detail": detail}, status, headers)


async def _ours(_: Request, error: Exception) -> JSONResponse:
    return answer(error)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Where it is wrong and why; what was sent is not repeated, for it may be a secret."""
    errors: Any = error.errors() if isinstance(error, RequestValidationError | ValidationError) else []
    told = [
        {"loc": [_plain(part) for part in one["loc"]], "msg": one["msg"], "type": one["type"]}
        for one in errors[:MOST_TOLD]
    ]
    return JSONResponse({"detail": told}, 422)


def _plain(part: Any) -> Any:
    return part if isinstance(part, int) else str(part)[:100]


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101  it is registered for these
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


HANDLERS: dict[int | type[Exception], Any] = {
    GaelpError: _ours,
    RequestValidationError: _invalid,
    ValidationError: _invalid,
    HTTPException: _http,
    Exception: _ours,
}
