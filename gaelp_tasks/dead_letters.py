"""Messages that cannot run: why, where they came from, and the way back."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect, worded

__all__ = ["DeadLetter", "count", "find", "listed", "purge", "replay"]

PAGE = 500


class DeadLetter(NamedTuple):
    """One message that was taken off its queue for good."""

    id: str
    reason: str
    queue: str
    since: float  #: Unix seconds, by Redis' clock
    task_id: str  #: '' where the message does not tell
    task: str  #: its name, '' where the message does not tell
    size_bytes: int
    message: bytes  #: exactly as it was found


def _read(name: bytes, record: bytes) -> DeadLetter:
    line, _, message = record.partition(b"\n")
    about = json.loads(line.decode(errors="replace"))
    headers: Any = {}
    try:
        headers = json.loads(message)["headers"]
        headers = headers if isinstance(headers, dict) else {}
    except (ValueError, LookupError, TypeError, RecursionError):
        pass  # that is what is wrong with it
    return DeadLetter(
        id=name.decode(),
        reason=str(about["reason"]),
        queue=str(about["queue"]),
        since=about["at"] / 1000,
        task_id=str(about.get("id") or headers.get("id") or "")[:255],
        task=str(headers.get("task") or "")[:255],
        size_bytes=len(message),
        message=message,
    )


def count(app: GaelpApp) -> int:
    """How many there are. Raises BrokerUnavailable."""
    with worded(app.settings):
        return int(app.redis.zcard(app.keys.dead))


def listed(app: GaelpApp, *, most: int) -> Iterator[DeadLetter]:
    """Up to `most` of them, the newest first. Raises BrokerUnavailable."""
    with worded(app.settings), connect(app.settings, text=False) as redis:
        names: Any = redis.zrange(app.keys.dead, 0, most - 1, desc=True)
        for at in range(0, len(names), PAGE):
            page = names[at : at + PAGE]
            records: Any = redis.hmget(app.keys.dead_messages, page)
            yield from (_read(name, record) for name, record in zip(page, records, strict=True) if record)


def find(app: GaelpApp, letter_id: str) -> DeadLetter | None:
    """One of them by its id or by its task's. Raises BrokerUnavailable."""
    with worded(app.settings), connect(app.settings, text=False) as redis:
        record: Any = redis.hget(app.keys.dead_messages, letter_id)
    if record is not None:
        return _read(letter_id.encode(), record)
    return next((one for one in listed(app, most=10_000) if one.task_id == letter_id), None)


def replay(app: GaelpApp, letter_ids: Iterable[str]) -> int:
    """Put them to the end of the queues they came from; how many were there. Raises BrokerUnavailable.

    Each is moved in one transaction: one that two people replay at once is published once.
    """
    return sum(_move(app, letter_id, back=True) for letter_id in letter_ids)


def purge(app: GaelpApp, letter_ids: Iterable[str]) -> int:
    """Throw them away; how many were there. Raises BrokerUnavailable."""
    return sum(_move(app, letter_id, back=False) for letter_id in letter_ids)


def _move(app: GaelpApp, letter_id: str, *, back: bool) -> bool:
    keys = app.keys

    def move(pipe: Any) -> None:
        record = pipe.hget(keys.dead_messages, letter_id)
        pipe.multi()
        pipe.hdel(keys.dead_messages, letter_id)
        pipe.zrem(keys.dead, letter_id)
        if record is not None and back:
            letter = _read(letter_id.encode(), record)
            pipe.lpush(letter.queue, letter.message)

    with worded(app.settings), connect(app.settings, text=False) as redis:
        removed: Any = redis.transaction(move, keys.dead_messages)
    return bool(removed[0])
