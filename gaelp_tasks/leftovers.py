"""Attachments whose message is nowhere any more, found by a look at every message there is.

That happens where a queue was emptied by hand, or a worker died between an acknowledgement and what follows
it. They get a time to live and are not deleted at once: a message that moved while we looked is met by the
next look, which takes the limit away again.
"""

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

from gaelp_tasks.attachments import key_of
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import Refused, connect, worded
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.attachment import REFERENCE
from gaelp_tasks.roundup import hashed, listed

__all__ = ["LEFT_S", "expire"]

LEFT_S = 3 * 86_400  #: to live; the next look comes before that, if looks are at what was idle for a day
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def expire(app: GaelpApp, *, idle_s: float) -> int:
    """Give a time to live to what was not used for `idle_s` seconds and belongs to no message; how many.

    What is as old and belongs to one loses its limit, should it have one. Raises BrokerUnavailable.
    """
    with worded(app.settings), closing(connect(app.settings, text=False)) as redis:
        old = set(_old(app, redis, idle_s))
        wanted = old.intersection(_referred_to(app, redis)) if old else old
        for key in wanted:
            redis.persist(key)
            redis.touch(key)  # and it is not looked for again at once
        lost = [key for key in old - wanted if redis.ttl(key) == -1]
        for key in lost:
            redis.expire(key, LEFT_S)
    return len(lost)


def _old(app: GaelpApp, redis: Any, idle_s: float) -> Iterator[bytes]:
    for key in redis.scan_iter(match=app.keys.attachment("*", "*"), count=1000):
        try:
            idle = redis.object("IDLETIME", key)
        except Refused:  # an LFU policy keeps no idle times
            return
        if idle is not None and int(idle) >= idle_s:
            yield key


def _referred_to(app: GaelpApp, redis: Any) -> Iterator[bytes]:
    """Keys of attachments that messages name, wherever those are: first the queues, from which they move."""
    keys = app.keys
    for place in list(redis.scan_iter(match=keys.queue("*"), count=1000, _type="list")):
        with suppress(Refused):  # somebody else's, which our user may not read
            for page in listed(redis, place):
                yield from _named(keys, page)
    for place in (keys.unacked, keys.parked_messages, keys.dead_messages):
        for records in hashed(redis, place):
            yield from _named(keys, records.values())


def _named(keys: Keys, records: Any) -> Iterator[bytes]:
    for record in records:
        if REFERENCE.encode() in record and (key := _key_in(keys, record)) is not None:
            yield key.encode()


def _key_in(keys: Keys, record: bytes) -> str | None:
    """Of a message, or of a record: a line about the message, then the message."""
    for text in (record, record.partition(b"\n")[2]):
        with suppress(*UNREADABLE):
            return key_of(keys, json.loads(text)["headers"])
    return None
