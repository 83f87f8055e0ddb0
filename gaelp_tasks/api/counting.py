"""Counts every request by method, route and status, and how long its answer took to begin."""

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gaelp_tasks.api import state
from gaelp_tasks.metrics.series import OTHER

__all__ = ["Counting"]

FAULT = 500
ABORTED = 499  #: in place of a status: it ended before its answer began


class Counting:
    """The outermost gate: what is refused further in counts, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        requests, began_at = state.of(scope["app"]).exporter.requests, perf_counter()
        begun = False

        def answered(status: int) -> None:
            nonlocal begun
            if not begun:
                begun = True
                requests.answered(scope["method"], _route(scope), status, perf_counter() - began_at)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered(message["status"])
            await send(message)

        requests.began()
        try:
            await self._app(scope, receive, counted)
        except Exception:
            answered(FAULT)  # who says so to the client stands further out
            raise
        finally:
            answered(ABORTED)
            requests.ended()


def _route(scope: Scope) -> str:
    """The template of its path; `other` where no route has it, or nobody got so far."""
    return getattr(scope.get("route"), "path", OTHER)
