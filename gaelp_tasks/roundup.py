"""Cancelling many at once: who waits, is parked or runs and fits a filter, wherever it moves meanwhile."""

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import time
from typing import Any, NamedTuple

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect, worded
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.overview import queues_of
from gaelp_tasks.queues import INBOXES, SEPARATOR, lower_tier
from gaelp_tasks.queues import lists as lists_of

__all__ = ["STATES", "Facts", "Filter", "cancel", "count", "facts_of", "hashed", "listed", "lists"]

STATES = ("queued", "parked", "running")
AGENT = "gaelp.invoke_agent"
TASKS = {AGENT, "gaelp.embed"}
PAGE_BYTES = 4 * 1024**2  #: about what one answer of Redis may bring
MOST = 1000  #: messages of one answer
FIRST = 50
ROUNDS = 10  #: looks at everything, until one finds nobody new


@dataclass(frozen=True, slots=True)
class Filter:
    """Which invocations; what is None or empty leaves nobody out."""

    tiers: frozenset[str] = frozenset()
    agent: str | None = None
    model: str | None = None  #: as asked for: who named none is not found by its node's default
    tenant: str | None = None
    queue: str | None = None  #: with the queues of models that belong to it, for an inbox
    older_than_s: float | None = None  #: since its publication; who does not tell that is never older
    states: frozenset[str] = frozenset(STATES)

    def fits(self, facts: "Facts", now: float) -> bool:
        """Whether it is one of them; `now` in Unix seconds."""
        asked = (self.agent, self.model, self.tenant)
        there = (facts.agent, facts.model, facts.tenant)
        return (
            (not self.tiers or facts.tier in self.tiers)
            and all(want is None or want == has for want, has in zip(asked, there, strict=True))
            and (self.queue is None or f"{facts.queue}.".startswith(f"{self.queue}."))
            and (
                self.older_than_s is None
                or (facts.published_at is not None and now - facts.published_at > self.older_than_s)
            )
        )


class Facts(NamedTuple):
    """What a message tells of its invocation, without its texts."""

    id: str
    queue: str
    tier: str
    agent: str  #: '' for an embedding
    model: str  #: '' where none was named
    tenant: str  #: '' where none was named
    published_at: float | None  #: Unix seconds; plain senders do not tell


class Found(NamedTuple):
    """One invocation in the place where it was seen."""

    facts: Facts
    state: str
    parked_as: str  #: its name among what is parked, '' elsewhere


def facts_of(message: bytes, queue: str) -> Facts | None:
    """What a message of ours tells; None for junk and for tasks that call no model."""
    try:
        told = json.loads(message)
        headers = told["headers"]
        if headers["task"] not in TASKS:
            return None
        body = told["body"]
        encoded = told["properties"].get("body_encoding") == "base64"
        _, asked, _ = json.loads(base64.b64decode(body) if encoded else body)
        if not isinstance(asked, Mapping):
            return None
        tier = asked.get("tier")
        published_at = headers.get("gaelp_published_at")
        return Facts(
            id=str(headers["id"]),
            queue=queue,
            tier=lower_tier(Tier(tier) if tier else None, queue).value,
            agent=str(asked.get("agent") or "chat") if headers["task"] == AGENT else "",
            model=str(asked.get("model") or ""),
            tenant=str(asked.get("tenant") or ""),
            published_at=float(published_at) if published_at is not None else None,
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def lists(app: GaelpApp, queue: str | None = None) -> list[str]:
    """The Redis lists that hold messages: where they are published first, where they move to after that."""
    names = dict.fromkeys((*INBOXES, *(name for tier in INBOXES for name in queues_of(app, tier))))
    if queue:
        names[queue] = None
    return [app.keys.queue(one) for name in names for one in lists_of(name)]


def count(app: GaelpApp, wanted: Filter) -> Counter[str]:
    """How many would be cancelled, by state: a look that changes nothing. Raises BrokerUnavailable.

    What moves while one looks may be counted twice or not at all.
    """
    found: Counter[str] = Counter()
    with worded(app.settings), connect(app.settings, text=False) as redis:
        for page in _pages(app, redis, wanted):
            asked: Any = redis.mget([app.keys.cancel(one.facts.id) for one in page])
            found.update(one.state for one, wish in zip(page, asked, strict=True) if wish is None)
    return found


def cancel(app: GaelpApp, wanted: Filter, progress: Callable[[int], None] = lambda _: None) -> Counter[str]:
    """Cancel them all; how many it were, by the state in which each was seen first.

    Each gets a standing request under its id, which finds it wherever it moves. One look goes the way that
    messages go, and it is repeated until nobody new is found, so that who moved against that way is met by
    the next. Not promised: those who are published after the last look began. `progress` is called with the
    number so far. Keeps one page of messages in memory. Raises BrokerUnavailable.
    """
    found: Counter[str] = Counter()
    with worded(app.settings), connect(app.settings, text=False) as redis:
        for _ in range(ROUNDS):
            before = found.total()
            for page in _pages(app, redis, wanted):
                found.update(_ask(app, redis, page))
                progress(found.total())
            if found.total() == before:
                break
    return found


def _ask(app: GaelpApp, redis: Any, page: list[Found]) -> list[str]:
    """Leave a request for each; the states of those who had none."""
    keys, ttl_ms = app.keys, int(app.settings.cancel_ttl_s * 1000)
    with redis.pipeline(transaction=False) as pipe:
        for one in page:
            pipe.set(keys.cancel(one.facts.id), Reason.USER.value, nx=True, px=ttl_ms)
        new = pipe.execute()
        for one, is_new in zip(page, new, strict=True):
            if not is_new:
                pipe.pexpire(keys.cancel(one.facts.id), ttl_ms)
            pipe.zadd(keys.parked, {one.parked_as or one.facts.id: 0}, xx=True)
            if one.state == "running":  # who begins to run meanwhile is met by its worker's next look
                pipe.publish(keys.cancellations, one.facts.id)
        pipe.execute()
    return [one.state for one, is_new in zip(page, new, strict=True) if is_new]


def _pages(app: GaelpApp, redis: Any, wanted: Filter) -> Iterator[list[Found]]:
    """Those who fit, page by page: the queues, what is parked, what runs."""
    now = time()
    for page in _places(app, redis, wanted):
        fitting = [found for found in page if wanted.fits(found.facts, now)]
        if fitting:
            yield fitting


def _places(app: GaelpApp, redis: Any, wanted: Filter) -> Iterator[list[Found]]:
    if "queued" in wanted.states:
        for key in lists(app, wanted.queue):
            queue = _queue_of(app, key)
            for messages in listed(redis, key):
                facts = (facts_of(message, queue) for message in messages)
                yield [Found(told, "queued", "") for told in facts if told]
        for suspects in listed(redis, app.keys.suspects):  # they wait for a worker of their own
            of_them = (_read(app, record) for record in suspects)
            yield [Found(told, "queued", "") for told in of_them if told]
    for state, place in (("parked", app.keys.parked_messages), ("running", app.keys.unacked)):
        if state in wanted.states:
            for records in hashed(redis, place):
                found = ((name, _read(app, record)) for name, record in records.items())
                yield [
                    Found(facts, state, name.decode() if state == "parked" else "")
                    for name, facts in found
                    if facts
                ]


def listed(redis: Any, key: str) -> Iterator[list[bytes]]:
    """A list from the end at which messages are added: what leaves at the other end shifts nothing here."""
    at, most = 0, FIRST
    while messages := redis.lrange(key, at, at + most - 1):
        yield messages
        at += len(messages)
        most = _next_page(messages)


def hashed(redis: Any, key: str) -> Iterator[dict[bytes, bytes]]:
    """A hash; whoever is in it all the time is met."""
    cursor, most = 0, FIRST
    while True:
        cursor, records = redis.hscan(key, cursor, count=most)
        yield records
        if cursor == 0:
            return
        most = _next_page(list(records.values())) if records else most


def _next_page(texts: list[bytes]) -> int:
    """How many to ask for, so that long messages come in small pages."""
    mean_bytes = sum(map(len, texts)) // len(texts)
    return max(1, min(MOST, PAGE_BYTES // max(1, mean_bytes)))


def _read(app: GaelpApp, record: bytes) -> Facts | None:
    line, _, message = record.partition(b"\n")
    try:
        return facts_of(message, _queue_of(app, str(json.loads(line)["queue"])))
    except (ValueError, LookupError, TypeError):
        return None


def _queue_of(app: GaelpApp, key: str) -> str:
    return key.removeprefix(app.settings.namespace).partition(SEPARATOR)[0]
