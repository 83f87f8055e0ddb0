"""Tickets for one WebSocket each, for pages in browsers, which can send no header with one."""

import hashlib
import secrets
from time import time

from gaelp_tasks.connections import AsyncRedis
from gaelp_tasks.errors import NotSignedIn
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.ticket import Admission, Ticket

__all__ = ["issue", "redeem"]

LONGEST = 100  #: characters; a longer one is not looked for
REFUSED = "The ticket does not hold: it is over, used, or none."


async def issue(redis: AsyncRedis, keys: Keys, caller: Caller, *, ttl_s: float, open_s: float) -> Ticket:
    """To be used within `ttl_s`, for what stays open `open_s` at most. Raises what redis-py raises."""
    ticket = secrets.token_urlsafe(24)
    admission = Admission(caller=caller, until=time() + open_s)
    await redis.set(_key(keys, ticket), admission.model_dump_json(), px=max(1, int(ttl_s * 1000)))
    return Ticket(ticket=ticket, expires_in_s=ttl_s)


async def redeem(redis: AsyncRedis, keys: Keys, ticket: str) -> Admission:
    """Whose it is; it holds no second time. Raises NotSignedIn, and what redis-py raises."""
    told = await redis.getdel(_key(keys, ticket)) if len(ticket) <= LONGEST else None
    try:
        return Admission.model_validate_json(told or "")
    except ValueError:
        raise NotSignedIn(REFUSED) from None


def _key(keys: Keys, ticket: str) -> str:
    """Redis keeps the digest only: who reads it there can open nothing."""
    return keys.ticket(hashlib.sha256(ticket.encode("utf-8", "replace")).hexdigest())
