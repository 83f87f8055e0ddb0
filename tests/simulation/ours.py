"""What the simulation calls of the product, and how it reads what is in Redis: the one place to adapt."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha1
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from gaelp_tasks import dead_letters, sweeping
from gaelp_tasks.connections import Refused, ScriptUnknown, SyncRedis, lost
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.keys import Keys
from gaelp_tasks.lifecycle import Cause, MessageState
from gaelp_tasks.models.invocation import DEFAULT_PRIORITY, Tier
from gaelp_tasks.queues import INBOXES, lists, place, route, step_of
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.base import ModelTask
from gaelp_workers import leases as leases_module
from gaelp_workers.dispatch import Capacity, Held, free, offer
from gaelp_workers.leases import Leases
from gaelp_workers.transport import PARTS
from simulation.server import Server

KEYS = Keys()
LEASE_S = 5.0
BEAT_S = LEASE_S / 10  # as steps.Holding has it
RESULTS = "celery-task-meta-"
MODELS = {tier.value: lists(route(tier))[step_of(DEFAULT_PRIORITY)] for tier in Tier}  # lists, by inbox
LISTS = (*INBOXES, *MODELS.values())  #: that messages are published to
MOST_BYTES = 10_000


class Message(NamedTuple):
    """What the judge needs to know of one."""

    id: str
    copy: str  #: a name of its own for each publication
    due: float | None  #: Unix seconds; None where it is not sent for later
    retries: int
    junk: bool


def message(
    task_id: str,
    copy: str,
    *,
    to: str,
    due: float | None = None,
    retries: int = 0,
    follows: str | None = None,
    junk: bool = False,
) -> str:
    """One in Celery's form, for this list; what is `junk` says it is compressed, which is refused unread."""
    eta = None if due is None else datetime.fromtimestamp(due, UTC).isoformat()
    headers: dict[str, Any] = {"id": task_id, "task": "gaelp.invoke_agent", "eta": eta, "retries": retries}
    headers |= {"copy": copy, "follows": follows, "list": to, "group": None}
    if junk:
        headers["compression"] = "application/x-gzip"
    properties = {"delivery_info": {"exchange": "", "routing_key": to}, "body_encoding": "base64"}
    return json.dumps({"body": "W10=", "headers": headers, "properties": properties})


@lru_cache(maxsize=10_000)
def read(text: bytes) -> Message:
    headers = json.loads(text)["headers"]
    due = None if headers["eta"] is None else datetime.fromisoformat(headers["eta"]).timestamp()
    return Message(headers["id"], headers["copy"], due, headers["retries"], "compression" in headers)


def publish(redis: SyncRedis, text: str) -> None:
    """As our publishers and others' do. Raises what redis-py raises."""
    redis.lpush(KEYS.queue(json.loads(text)["headers"]["list"]), text)


def behind(headers: dict[str, Any]) -> str:
    """Where our own code publishes what comes after this message."""
    return MODELS.get(headers["list"], headers["list"])


def make_leases(redis: SyncRedis, holder: str) -> Leases:
    return Leases(
        redis, KEYS, holder=holder, ttl_s=LEASE_S, claims_ttl_s=86_400.0, poison_deaths=5, results=RESULTS
    )


class Claimed(NamedTuple):
    """A message that a claim brought."""

    tag: str
    claim: int
    headers: dict[str, Any]


def send_claim(redis: SyncRedis, leases: Leases, slots: int) -> list[Any]:
    """A claim's answer, as it came; [] where Redis had to be taught the script first."""
    try:
        room = free(leases.held.values(), Capacity({}, {}, others=slots, seats=0))
        command = leases.claim_command(offer(INBOXES, map(route, Tier)), room, INBOXES, most_bytes=MOST_BYTES)
        return redis.execute_command(*command)
    except ScriptUnknown:
        leases.load()
        return []


def take(leases: Leases, answer: list[Any]) -> list[Claimed]:
    """As the transport hands out an answer."""
    claimed = []
    taken = answer[0] if answer else []
    for at in range(0, len(taken), PARTS):
        _, tag, claim, how, _, text = taken[at : at + PARTS]
        headers = json.loads(text)["headers"]
        leases.took(tag, Held(headers["id"], alone="a" in how))
        claimed.append(Claimed(tag, claim, headers))
    return claimed


def sort(leases: Leases, answer: list[Any]) -> None:
    """As the transport sorts what a claim has found in inboxes. Raises what redis-py raises."""
    unsorted = answer[1] if answer else []
    places = []
    for source, text in zip(unsorted[::2], unsorted[1::2], strict=True):
        to = place(text.encode(), source.removeprefix(KEYS.namespace))
        assert to is not None
        places.append((source, text.encode(), to))
    leases.sort(places)


@dataclass
class Seat:
    """What `ModelTask.deliver` needs of a task: it decides, and publishes what comes again."""

    request: Any
    again: Callable[[float, int], None]  #: publish it for in so many seconds, with so many retries
    backend: Any = field(default_factory=lambda: SimpleNamespace(_fail_chain=lambda chain, error: None))

    def __getattr__(self, name: str) -> Any:
        """What `deliver` uses of itself is the real thing."""
        return getattr(ModelTask, name).__get__(self)

    def signature_from_request(self, request: Any, *, kwargs: Any, countdown: float, retries: int) -> Any:
        def apply_async() -> None:
            try:
                self.again(countdown, retries)
            except (*lost, Refused) as error:  # a full Redis, too: kombu makes one error of them
                raise BrokerUnavailable("Redis does not take it.") from error

        return SimpleNamespace(apply_async=apply_async)


def seat(claimed: Claimed, again: Callable[[float, int], None]) -> Seat:
    retries = claimed.headers["retries"]
    request = SimpleNamespace(
        id=claimed.headers["id"], retries=retries, is_eager=False,
        chain=None, callbacks=None, chord=None, group=None, kwargs=None, get=lambda name: None,
    )  # fmt: skip
    return Seat(request, again)


@contextmanager
def operator(redis: SyncRedis) -> Iterator[Any]:
    """The app that gaelp's commands speak through, its connections on this line."""

    with patch.object(dead_letters, "connect", lambda *_, **__: redis):
        yield SimpleNamespace(settings=Settings(), keys=KEYS, redis=redis)


# -- what is in Redis


class HeldMessage(NamedTuple):
    """One under a lease, or one whose lease is missing."""

    message: Message
    claim: int
    until: float | None  #: Unix seconds


@dataclass
class Seen:
    """Where every message is."""

    queued: list[Message] = field(default_factory=list)
    held: dict[str, HeldMessage] = field(default_factory=dict)  #: by tag
    parked: list[tuple[Message, float | None]] = field(default_factory=list)  #: until, Unix seconds
    suspects: list[Message] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)
    leases: set[str] = field(default_factory=set)  #: tags

    def places(self) -> Iterator[tuple[Message, MessageState]]:
        yield from ((one, MessageState.QUEUED) for one in self.queued)
        yield from ((one.message, MessageState.HELD) for one in self.held.values())
        yield from ((one, MessageState.PARKED) for one, _ in self.parked)
        yield from ((one, MessageState.SUSPECT) for one in self.suspects)
        yield from ((one, MessageState.DEAD) for one in self.dead)


def _split(record: bytes) -> tuple[dict[str, Any], Message]:
    about, _, text = record.partition(b"\n")
    return json.loads(about), read(text)


_split = lru_cache(maxsize=10_000)(_split)


def look(server: Server) -> Seen:
    """Everything, as of now."""
    leases, parked = server.scores(KEYS.leases), server.scores(KEYS.parked)
    seen = Seen(leases=set(leases))
    for name, texts in server.lists():
        if name == KEYS.suspects:
            seen.suspects.extend(_split(record)[1] for record in texts)
        else:
            seen.queued.extend(map(read, texts))
    for name, record in server.hash(KEYS.unacked).items():
        tag = name.decode()
        about, one = _split(record)
        until = leases.get(tag)
        seen.held[tag] = HeldMessage(one, about["claim"], None if until is None else until / 1000)
    for name, record in server.hash(KEYS.parked_messages).items():
        due = parked.get(name.decode())
        seen.parked.append((_split(record)[1], None if due is None else due / 1000))
    for record in server.hash(KEYS.dead_messages).values():
        seen.dead.append(_split(record)[1])
    return seen


#: what a command begins with that changes no message and settles nothing
READS = frozenset(
    b"GET MGET XRANGE XREVRANGE CLIENT ZRANGE HGET HMGET HSTRLEN WATCH UNWATCH PING SCRIPT PUBLISH".split()
)


def cause_of(said: list[bytes]) -> Cause | None:
    """What a command may move; None where it may move nothing, and the judge need not look."""
    if said[0] in {b"EVALSHA", b"EVAL"}:
        sha = said[1] if said[0] == b"EVALSHA" else sha1(said[1], usedforsecurity=False).hexdigest().encode()
        return _scripts().get(sha.decode(), Cause.SETTLE)
    if said[0] in READS:
        return None
    if KEYS.dead_messages.encode() in said:
        return Cause.REPLAY if b"LPUSH" in said else Cause.PURGE
    if KEYS.unacked.encode() in said:
        return Cause.ACKNOWLEDGE
    return Cause.PUBLISH if said[0] == b"LPUSH" else Cause.SETTLE


def _scripts() -> dict[str, Cause | None]:
    names = {
        "CLAIM": Cause.CLAIM,
        "GIVE_BACK": Cause.GIVE_BACK,
        "BURY": Cause.BURY,
        "SORT": Cause.PUBLISH,
        "RENEW": Cause.SETTLE,  # moves nothing
        "TIDY": None,
        "HEADS": None,
    }
    known = {getattr(leases_module, name).sha: cause for name, cause in names.items()}
    return {**known, sweeping.SWEEP.sha: Cause.SWEEP}


def is_renewal(said: list[bytes]) -> bool:
    return (
        said[0] in {b"EVALSHA", b"EVAL"}
        and KEYS.swept("").encode() in said
        and KEYS.unacked.encode() not in said
    )


def renewed(said: list[bytes]) -> list[str]:
    """The tags that a renewal names."""
    return [word.decode() for word in said[said.index(KEYS.deaths("").encode()) + 1 :]]
