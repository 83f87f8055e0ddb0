"""Bodies: bounded, and read as JSON whatever their content type says, as `curl -d @file` sends them."""

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Bodies"]

JSON = (b"content-type", b"application/json")


class Bodies:
    """Calls every body JSON; a route that wants its bytes takes the request itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] == "http":
            others = [header for header in scope["headers"] if header[0] != b"content-type"]
            scope["headers"] = [*others, JSON]
        await self._app(scope, receive, send)
