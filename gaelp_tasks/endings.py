"""How invocations have ended, on the way from the workers to the database: one bounded stream in Redis."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from gaelp_tasks.connections import SyncRedis
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.ending import Ending

__all__ = ["Told", "bound", "forget", "tell", "waiting", "withdraw"]

BOUND_BYTES = 64 * 1024**2  #: of all that waits, about; then the oldest is lost
ENTRY_BYTES = 512  #: of one without its texts, as Redis keeps it
PAGE = 500
FIELD = "end"


class Told(NamedTuple):
    """What a worker has told."""

    entry: str  #: its id in the stream
    at: datetime  #: when, by Redis' clock
    ending: Ending | None  #: None where it cannot be read


def bound(text_bytes: int) -> int:
    """How many may wait where so much of each text is kept."""
    return BOUND_BYTES // (ENTRY_BYTES + 2 * text_bytes) or 1


def tell(redis: SyncRedis, keys: Keys, ending: Ending, *, text_bytes: int = 0) -> None:
    """Put it behind the others. Raises what redis-py raises."""
    redis.xadd(keys.history, {FIELD: ending.model_dump_json()}, maxlen=bound(text_bytes))


def waiting(redis: SyncRedis, keys: Keys, *, most: int) -> list[Told]:
    """The oldest that wait. Raises what redis-py raises."""
    entries: Any = redis.xrange(keys.history, count=most)
    return [_read(entry, fields) for entry, fields in entries]


def forget(redis: SyncRedis, keys: Keys, entries: Iterable[str]) -> None:
    """Take these out: they are in the database. Raises what redis-py raises."""
    redis.xdel(keys.history, *entries)


def withdraw(
    redis: SyncRedis, keys: Keys, invocation_ids: Collection[str], tenant: str | None = None
) -> set[str]:
    """Take out what was told of these, of a tenant's only where one is named; of which that was.

    Raises what redis-py raises.
    """
    after, taken = "-", set()
    while entries := redis.xrange(keys.history, min=after, count=PAGE):
        told = [_read(entry, fields) for entry, fields in cast("Any", entries)]
        known = [(one.entry, one.ending) for one in told if one.ending is not None]
        meant = [
            (entry, end.id)
            for entry, end in known
            if end.id in invocation_ids and tenant in (None, end.tenant)
        ]
        if meant:
            forget(redis, keys, [entry for entry, _ in meant])
            taken |= {name for _, name in meant}
        after = f"({told[-1].entry}"
    return taken


def _read(entry: str, fields: dict[str, str]) -> Told:
    at = datetime.fromtimestamp(int(entry.partition("-")[0]) / 1000, UTC)
    try:
        return Told(entry, at, Ending.model_validate_json(fields.get(FIELD, "")))
    except ValueError:  # pydantic's error is one
        return Told(entry, at, None)
