"""Users and their keys: who may come in, and by what."""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta

from gaelp_tasks.db.database import Database
from gaelp_tasks.db.users import FoundKey, Keys
from gaelp_tasks.errors import NotAllowed
from gaelp_tasks.models.audit import By
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.user import Key, NewKey

__all__ = ["KEY_PREFIX", "beginning", "fits", "make_key"]

KEY_PREFIX = "gaelp_"  #: how every key begins; no JWT does
OWN_PART = 12  #: hexadecimal digits by which a key is found
SECRET_BYTES = 32  #: so many that no slow hash is needed
LENGTH = len(KEY_PREFIX) + OWN_PART + 1 + 2 * SECRET_BYTES


async def make_key(
    db: Database, caller: Caller, new: NewKey, *, by: By | None = None, now: datetime | None = None
) -> Key:
    """A key for who asks, itself included: it is kept as a hash, and nobody is told it again.

    `by` whom in the audit; None: by the caller.
    Raises NotFound where SQL does not know the caller, NotAllowed where it would do more than the caller may.
    """
    role = new.role or caller.role
    if not caller.role.covers(role):
        raise NotAllowed(f"No key can have the role {role}: {caller.name} has {caller.role}.")
    at = now or datetime.now(UTC)
    prefix = KEY_PREFIX + secrets.token_hex(OWN_PART // 2)
    key = f"{prefix}_{secrets.token_hex(SECRET_BYTES)}"
    made = Key(
        id=0,
        user=caller.name,
        role=role,
        name=new.name,
        prefix=prefix,
        created_at=at,
        expires_at=None if new.ttl_s is None else at + timedelta(seconds=new.ttl_s),
    )
    kept = await Keys(db, caller.name, by or By.of(caller)).add(made, _digest(key))
    return kept.model_copy(update={"key": key})


def beginning(key: str) -> str | None:
    """The part by which a key is found; None where it cannot be a key of ours."""
    prefix, _, secret = key.removeprefix(KEY_PREFIX).partition("_")
    if len(key) != LENGTH or len(prefix) != OWN_PART or not secret:
        return None
    return KEY_PREFIX + prefix


def fits(key: str, found: FoundKey, now: datetime) -> bool:
    """Whether it is that very key, and holds."""
    same = hmac.compare_digest(_digest(key), found.digest)
    return same and (found.expires_at is None or now < found.expires_at) and not found.user.disabled


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
