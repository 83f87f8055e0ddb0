"""Who asks: from a token or a key to a caller, with as little SQL as may be.

A token is checked by its signature alone; only one that holds asks SQL for its user, whose standing is then
remembered for a few seconds. So a change of a user counts within `REMEMBERED_S` on every replica, at once on
the one that made it.
"""

from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic, time
from typing import Generic, TypeVar

from gaelp_tasks.db.database import Database
from gaelp_tasks.db.users import FoundKey, Keys, Users
from gaelp_tasks.errors import NotSignedIn
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.user import User
from gaelp_tasks.services import users
from gaelp_tasks.services.tokens import REFUSED, Claims, Tokens
from gaelp_tasks.settings import Settings

__all__ = ["REMEMBERED_S", "Identity"]

REMEMBERED_S = 5.0  #: before a user or a key is looked up again
KNOWN_S = 3600.0  #: a key that was good counts as known
MOST = 10_000  #: users, and as many keys, that are remembered
T = TypeVar("T")


class _Memory(Generic[T]):
    """What was found lately by name, None included."""

    def __init__(self, tick: Callable[[], float], for_s: float = REMEMBERED_S) -> None:
        self._tick = tick
        self._for_s = for_s
        self._found: OrderedDict[str, tuple[T | None, float]] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        found = self._found.get(name)
        return found is not None and self._tick() < found[1]

    def __getitem__(self, name: str) -> T | None:
        return self._found[name][0]

    def keep(self, name: str, found: T | None) -> T | None:
        self._found[name] = found, self._tick() + self._for_s
        self._found.move_to_end(name)
        while len(self._found) > MOST:
            self._found.popitem(last=False)
        return found

    def clear(self) -> None:
        self._found.clear()


class Identity:
    """Recognises callers. Raises SettingsError where no secret is set."""

    def __init__(self, settings: Settings, db: Database, tick: Callable[[], float] = monotonic) -> None:
        self._tokens = Tokens(settings)
        self._db = db
        self._claims: _Memory[Claims] = _Memory(tick)
        self._users: _Memory[User] = _Memory(tick)
        self._keys: _Memory[FoundKey] = _Memory(tick)
        self._known_keys: _Memory[FoundKey] = _Memory(tick, KNOWN_S)

    async def caller(self, token: str) -> Caller:
        """Who sends this token or key. Raises NotSignedIn, DatabaseUnavailable."""
        if token.startswith(users.KEY_PREFIX):
            return await self._by_key(token)
        claims = self._read(token)
        asked = claims.caller
        user = await self._user(asked.name)
        if user is None:  # whoever has the secret may vouch for people whom SQL does not know
            return asked
        too_old = user.tokens_from is not None and claims.made_at < int(user.tokens_from.timestamp())
        elsewhere = claims.names_tenant and asked.tenant != user.tenant
        if user.disabled or too_old or elsewhere:
            raise NotSignedIn(REFUSED)
        return _caller(user, asked.role)

    async def still(self, caller: Caller) -> Caller:
        """Somebody recognised before, as the user stands now. Raises NotSignedIn, DatabaseUnavailable."""
        user = await self._user(caller.name)
        if user is None:
            return caller
        if user.disabled or user.tenant != caller.tenant:
            raise NotSignedIn(REFUSED)
        return _caller(user, caller.role)

    def is_cheap(self, token: str) -> bool:
        """Whether it can be refused without SQL: a token, or a key that was known not long ago."""
        return not token.startswith(users.KEY_PREFIX) or (users.beginning(token) or "") in self._known_keys

    def _read(self, token: str) -> Claims:
        """To check a signature costs as much as the rest of a sign-in, and a client repeats it."""
        if token in self._claims:
            claims = self._claims[token]
            if claims is not None and time() < claims.expires_at:
                return claims
        claims = self._tokens.read(token)
        self._claims.keep(token, claims)
        return claims

    async def _user(self, name: str) -> User | None:
        if name in self._users:
            return self._users[name]
        return self._users.keep(name, await Users(self._db, None).find(name))

    async def _by_key(self, key: str) -> Caller:
        prefix = users.beginning(key)
        if prefix is None:
            raise NotSignedIn(REFUSED)
        if prefix in self._keys:
            found = self._keys[prefix]
        else:
            found = self._keys.keep(prefix, await Keys(self._db, None).find(prefix))
        if found is not None:
            self._known_keys.keep(prefix, found)
        if found is None or not users.fits(key, found, datetime.now(UTC)):
            raise NotSignedIn(REFUSED)
        return _caller(found.user, found.role)

    def forget(self) -> None:
        """Users or keys have changed here: look them up anew."""
        self._users.clear()
        self._keys.clear()


def _caller(user: User, role: Role) -> Caller:
    return Caller.model_construct(name=user.name, tenant=user.tenant, role=role.at_most(user.role))
