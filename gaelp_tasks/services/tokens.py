"""Tokens that say who asks: made and read here, by one secret and one algorithm. The only door to PyJWT.

`sub` names a user, `exp` is required, `role` or `admin: true` says what it may do at most, `tenant` whose
work it sees. Whatever else a token claims is ignored.
"""

import time
from typing import Any, NamedTuple

import jwt

from gaelp_tasks.errors import NotSignedIn, SettingsError
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.settings import Settings

__all__ = ["REFUSED", "Claims", "Tokens"]

LONGEST = 4096  #: characters of a token; a longer one is not looked at
LEEWAY_S = 5.0  #: clocks of two machines differ
REFUSED = "The token does not hold: it is malformed, forged, or over."


class Claims(NamedTuple):
    """What a token says that holds."""

    caller: Caller
    made_at: float  #: Unix seconds; 0 where it does not say
    expires_at: float  #: Unix seconds
    names_tenant: bool  #: else it is of whatever tenant its user is


class Tokens:
    """Makes and reads them. Raises SettingsError where there is no secret."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.jwt_secret.get_secret_value()
        self._algorithm = settings.jwt_algorithm
        if not self._secret:
            raise SettingsError(
                "GAELP_JWT_SECRET is not set, and without it anybody could sign tokens: make one by "
                "`openssl rand -hex 32`, and give it to every `gaelp api` and `gaelp token`."
            )

    def issue(self, caller: Caller, ttl_s: float, *, now: float | None = None) -> str:
        """A token that holds for so many seconds."""
        at = time.time() if now is None else now
        claims = {
            "sub": caller.name,
            "tenant": caller.tenant,
            "role": caller.role.value,
            "admin": caller.role is Role.ADMIN,
            "iat": int(at),
            "exp": int(at + ttl_s),
        }
        return jwt.encode(claims, self._secret, algorithm=self._algorithm)

    def read(self, token: str) -> Claims:
        """What it says. Raises NotSignedIn, without telling what is wrong with it."""
        if len(token) > LONGEST:
            raise NotSignedIn(REFUSED)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=[self._algorithm],
                leeway=LEEWAY_S,
                options={"require": ["sub", "exp"], "verify_aud": False},
            )
            caller = Caller(name=claims["sub"], tenant=claims.get("tenant", ""), role=_role(claims))
            made_at, expires_at = float(claims.get("iat", 0)), float(claims["exp"])
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise NotSignedIn(REFUSED) from None
        return Claims(caller, made_at, expires_at, "tenant" in claims)


def _role(claims: dict[str, Any]) -> Role:
    """Raises ValueError for a role that is none, and where `admin` says another thing than `role`."""
    admin = claims.get("admin", False)
    if not isinstance(admin, bool):
        raise TypeError("admin is true or false")
    if "role" not in claims:
        return Role.ADMIN if admin else Role.USER
    role = Role(claims["role"])
    if admin and role is not Role.ADMIN:
        raise ValueError("admin and role differ")
    return role
