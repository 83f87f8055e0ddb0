"""Who may come in: every request is signed in before its body is read, and every route says what it needs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gaelp_tasks.api import state
from gaelp_tasks.api.refusals import answer
from gaelp_tasks.api.requests import CALLER
from gaelp_tasks.api.state import State
from gaelp_tasks.errors import GaelpError, NotAllowed, NotSignedIn, QueueFull
from gaelp_tasks.models.caller import Caller, Role

__all__ = ["PUBLIC", "Needs", "SignIn", "address_of", "needs", "policies", "recognised"]

PUBLIC = frozenset({"/health", "/openapi.json", "/docs"})  #: nobody need be known there
WHO = "Send `Authorization: Bearer TOKEN`; `gaelp token create` prints one."
TOO_MANY = "Too many sign-ins from this address have failed."
TOO_FAST = "These are more requests than a user may send (GAELP_API_RATE_PER_S)."


@dataclass(frozen=True, slots=True)
class Needs:
    """A dependency that gives who asks, if the role is high enough. Raises NotAllowed."""

    role: Role

    async def __call__(self, connection: HTTPConnection) -> Caller:
        """As FastAPI calls it."""
        caller: Caller | None = connection.scope.get(CALLER)
        if caller is None:
            raise NotSignedIn(WHO)
        if not caller.role.covers(self.role):
            raise NotAllowed(f"This needs the role {self.role}, and {caller.name} has {caller.role}.")
        return caller


def needs(role: Role) -> Any:
    """The policy of a route, as the default of its argument `caller` in Annotated."""
    return Depends(Needs(role))


def policies(routes: Iterable[Any]) -> dict[tuple[str, str], Role | None]:
    """What each route but WebSockets needs, by method and path; None where it says nothing."""
    found: dict[tuple[str, str], Role | None] = {}
    for route in routes:
        if isinstance(route, WebSocketRoute):
            continue
        if not isinstance(route, Route):  # a router within
            found |= policies(getattr(route, "original_router", route).routes)
            continue
        roles = _roles(route.dependant) if isinstance(route, APIRoute) else []
        for method in sorted((route.methods or set()) - {"HEAD"}):
            found[method, route.path_format] = max(roles, key=lambda role: role.rank, default=None)
    return found


def _roles(dependant: Any) -> list[Role]:
    own = [dependant.call.role] if isinstance(dependant.call, Needs) else []
    return own + [role for one in dependant.dependencies for role in _roles(one)]


class SignIn:
    """Signs each HTTP request in before anything of it is read; WebSockets sign in by themselves."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] == "http" and scope["path"] not in PUBLIC:
            at = state.of(scope["app"])
            try:
                caller = scope[CALLER] = await _caller(at, scope)
                if wait_s := await at.rates.wait_s(caller):
                    raise QueueFull(TOO_FAST, retry_after_s=wait_s)
            except GaelpError as error:
                await answer(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _caller(at: State, scope: Scope) -> Caller:
    return await recognised(at, _token(scope), address_of(scope))


def address_of(scope: Scope) -> str:
    """From where it comes; '' where nobody knows."""
    return scope["client"][0] if scope.get("client") else ""


async def recognised(at: State, token: str, address: str) -> Caller:
    """Who asks. Raises NotSignedIn, or QueueFull where the address has failed too often.

    Then a token is still checked, which costs nothing, so that nobody is shut out by who shares his address;
    a key that is not known already is not looked up.
    """
    wait_s = at.failures.wait_s(address)
    if wait_s and not at.identity.is_cheap(token):
        raise QueueFull(TOO_MANY, retry_after_s=wait_s)
    try:
        return await at.identity.caller(token)
    except NotSignedIn:
        if wait_s:
            raise QueueFull(TOO_MANY, retry_after_s=wait_s) from None
        at.failures.note(address)
        raise


def _token(scope: Scope) -> str:
    """The bearer token of a request. Raises NotSignedIn."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer" and token:
                return str(token.strip())
    raise NotSignedIn(WHO)
