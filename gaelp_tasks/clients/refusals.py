"""What an HTTP status of a node means."""

import math
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from gaelp_tasks.clients.wire import error_in
from gaelp_tasks.errors import ModelMissing, NodeBusy, NodeError, NodeFailed, RequestRefused

__all__ = ["refusal", "retry_after_s"]

MAX_WAIT_S = 3600.0  #: no node may ask for a longer wait


def retry_after_s(header: str | None, *, now_unix: float) -> float | None:
    """Seconds that a Retry-After header asks for, a number or a date; None where it says nothing usable."""
    if not header:
        return None
    try:
        wait_s = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        wait_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_unix
    return min(max(wait_s, 0.0), MAX_WAIT_S) if math.isfinite(wait_s) else None


def refusal(  # noqa: PLR0911  one return for each kind of status
    status: int, answer: bytes, *, node: str, path: str, model: str, wait_s: float | None
) -> NodeError:
    """The error that an HTTP status means; `model` is the one asked for, '' where none was."""
    detail = error_in(answer)
    said = f"{status}: {detail}" if detail else str(status)
    match status:
        case HTTPStatus.NOT_FOUND if model:
            hint = "" if detail else "; if it does have it, that address is no Ollama server"
            return ModelMissing(
                f"{node} has no model '{model}'; pull it there: gaelp models pull {model};"
                f" or name another{hint}.",
                node=node,
            )
        case HTTPStatus.NOT_FOUND:
            return RequestRefused(
                f"{node} answers 404 for {path}: that address is no Ollama server, or lacks its path prefix.",
                node=node,
            )
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return RequestRefused(
                f"{node} asks for credentials ({said}): set GAELP_OLLAMA_HEADERS.", node=node
            )
        case HTTPStatus.SERVICE_UNAVAILABLE | HTTPStatus.TOO_MANY_REQUESTS:
            return NodeBusy(f"{node} is busy ({said}): try again later.", node=node, retry_after_s=wait_s)
        case HTTPStatus.REQUEST_TIMEOUT | 499:  # 499: another caller's disconnect aborted the load (#8398)
            return NodeFailed(f"{node} gave up on the request ({said}): try again.", node=node)
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return NodeFailed(f"{node} failed ({said}): its own log says why.", node=node)
        case _ if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return RequestRefused(f"{node} redirects ({said}): name the address it points to.", node=node)
    return RequestRefused(f"{node} refuses the request ({said}): change the request.", node=node)
