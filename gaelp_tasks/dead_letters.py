"""Messages that cannot run: why, where they came from, and the way back.

There is no bound to them: each takes what it took in its queue, where nothing bounded it either, and nothing
that was accepted is dropped or cut short. `gaelp doctor` says when there are any, and how large they are.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from typing import Any, NamedTuple

from gaelp_tasks import endings
from gaelp_tasks.attachments import key_of
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect, unavailable, worded
from gaelp_tasks.errors import DeadLettered
from gaelp_tasks.keys import Keys
from gaelp_tasks.lifecycle import State
from gaelp_tasks.models.ending import Ending

__all__ = [
    "POISON",
    "DeadLetter",
    "Which",
    "count",
    "find",
    "give_up",
    "grouped",
    "listed",
    "purge",
    "replay",
    "size_bytes",
]

PAGE = 500
READ_BYTES = 8 * 1024**2  #: of records in one answer; a larger record comes alone
SUB_KEY = "\x06\x16"  #: kombu's mark between a queue and a step of its priority
POISON = "it killed the workers that ran it"  #: what is told to who waits
#: nothing that an operator could mend makes these run; «malformed ...» neither
HOPELESS = frozenset({"not JSON", "not a Celery message", "not JSON inside", "compressed", "unreadable eta"})


class DeadLetter(NamedTuple):
    """One message that was taken off its queue for good."""

    id: str
    reason: str
    queue: str
    since: float  #: Unix seconds, by Redis' clock
    task_id: str  #: '' where the message does not tell
    task: str  #: its name, '' where the message does not tell
    size_bytes: int
    more: Mapping[str, Any]  #: what else was noted about it
    attachment: str  #: key of what lies beside it, '' where nothing does
    message: bytes  #: exactly as it was found
    place: bytes  #: key of the list it came from

    @property
    def comes_back(self) -> bool:
        """Whether it would be refused again, whatever changes but our own code."""
        return self.reason in HOPELESS or self.reason.startswith("malformed")


class Which(NamedTuple):
    """Those that are meant; '' is any. A reason, queue or task counts as soon as it begins so."""

    reason: str = ""
    queue: str = ""
    task: str = ""

    def means(self, letter: DeadLetter) -> bool:
        """Whether it is one of them."""
        return all(
            has.startswith(wanted)
            for has, wanted in zip((letter.reason, letter.queue, letter.task), self, strict=True)
        )


ANY = Which()


def _read(name: bytes, record: bytes, namespace: str) -> DeadLetter:
    line, _, message = record.partition(b"\n")
    about: dict[str, Any] = json.loads(line.decode(errors="replace"))
    headers: Any = {}
    try:
        headers = json.loads(message)["headers"]
        headers = headers if isinstance(headers, dict) else {}
    except (ValueError, LookupError, TypeError, RecursionError):
        pass  # that is what is wrong with it
    place = str(about["queue"])
    more = {key: value for key, value in about.items() if key not in {"reason", "queue", "at", "id"}}
    return DeadLetter(
        id=_shown(name),
        reason=str(about["reason"]),
        queue=place.removeprefix(namespace).partition(SUB_KEY)[0],
        since=about["at"] / 1000,
        task_id=str(about.get("id") or headers.get("id") or "")[:255],
        task=str(headers.get("task") or "")[:255],
        size_bytes=len(message),
        more=more,
        attachment=key_of(Keys(namespace), headers) or "",
        message=message,
        place=place.encode(),
    )


def _shown(name: bytes) -> str:
    """The id of the dead letter of this name: one that a shell takes for a word."""
    return name.decode().replace("|", ":", 1)


def _name(letter_id: str) -> bytes:
    return letter_id.replace(":", "|", 1).encode()


def give_up(app: GaelpApp, task_id: str, reason: str) -> None:
    """Tell who waits for a task that its message is a dead letter; replayed, it may still end well."""
    with suppress(*unavailable):
        app.backend.mark_as_failure(
            task_id, DeadLettered(f"The message of {task_id} is a dead letter: {reason}.")
        )
        error = f"DeadLettered: {reason}"
        ending = Ending(id=task_id, task="", tier="", state=State.FAILED, error=error)
        endings.tell(app.redis, app.keys, ending)


def count(app: GaelpApp) -> int:
    """How many there are. Raises BrokerUnavailable."""
    with worded(app.settings):
        return int(app.redis.zcard(app.keys.dead))


def size_bytes(app: GaelpApp) -> int:
    """What they take in Redis, about: it looks at some of them. Raises BrokerUnavailable."""
    with worded(app.settings):
        found: Any = app.redis.memory_usage(app.keys.dead_messages, samples=20)
    return int(found or 0)


def listed(app: GaelpApp, *, most: int, skip: int = 0, which: Which = ANY) -> Iterator[DeadLetter]:
    """Up to `most` of those that are meant, the newest first, after `skip` of them. Raises BrokerUnavailable.

    However large they are, no more than a few are in memory at once.
    """
    found = 0
    with worded(app.settings), closing(connect(app.settings, text=False)) as redis:
        names: Any = redis.zrange(app.keys.dead, 0, -1, desc=True)
        for name, record in _records(redis, app.keys.dead_messages, names):
            letter = _read(name, record, app.settings.namespace)
            if not which.means(letter):
                continue
            found += 1
            if found > skip:
                yield letter
            if found >= skip + most:
                return


def _records(redis: Any, key: str, names: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for some in _batches(redis, key, names):
        for name, record in zip(some, redis.hmget(key, some), strict=True):
            if record:
                yield name, record


def _batches(redis: Any, key: str, names: list[bytes]) -> Iterator[list[bytes]]:
    """As many at once as READ_BYTES allow."""
    for at in range(0, len(names), PAGE):
        page = names[at : at + PAGE]
        with redis.pipeline(transaction=False) as pipe:
            for name in page:
                pipe.hstrlen(key, name)
            lengths = pipe.execute()
        batch: list[bytes] = []
        total = 0
        for name, length in zip(page, lengths, strict=True):
            if batch and total + length > READ_BYTES:
                yield batch
                batch, total = [], 0
            batch.append(name)
            total += length
        yield batch


def grouped(app: GaelpApp, by: Callable[[DeadLetter], str], which: Which = ANY) -> Counter[str]:
    """How many of each kind there are. Raises BrokerUnavailable."""
    every = count(app)
    return Counter(by(letter) for letter in listed(app, most=every, which=which))


def find(app: GaelpApp, letter_id: str) -> DeadLetter | None:
    """One of them by its id or by its task's. Raises BrokerUnavailable."""
    name = _name(letter_id)
    with worded(app.settings), closing(connect(app.settings, text=False)) as redis:
        record: Any = redis.hget(app.keys.dead_messages, name)
    if record is not None:
        return _read(name, record, app.settings.namespace)
    return next((one for one in listed(app, most=count(app)) if one.task_id == letter_id), None)


def replay(app: GaelpApp, letter_ids: Iterable[str]) -> int:
    """Put them to the end of the queues they came from; how many were there. Raises BrokerUnavailable.

    They are moved in transactions: what two people replay at once is published once.
    """
    names = list(dict.fromkeys(_name(letter_id) for letter_id in letter_ids))
    keys, moved = app.keys, 0
    redis: Any

    def move(pipe: Any, some: list[bytes]) -> int:
        records: list[bytes | None] = pipe.hmget(keys.dead_messages, some)
        pipe.multi()
        for name, record in zip(some, records, strict=True):
            pipe.hdel(keys.dead_messages, name)
            pipe.zrem(keys.dead, name)
            if record is not None:
                letter = _read(name, record, app.settings.namespace)
                pipe.lpush(letter.place, letter.message)
        return len(records) - records.count(None)

    with worded(app.settings), closing(connect(app.settings, text=False)) as redis:
        for some in _batches(redis, keys.dead_messages, names):
            moved += redis.transaction(partial(move, some=some), keys.dead_messages, value_from_callable=True)
    return moved


def purge(app: GaelpApp, letter_ids: Iterable[str]) -> int:
    """Throw them away; how many were there. Raises BrokerUnavailable."""
    names = list(dict.fromkeys(_name(letter_id) for letter_id in letter_ids))
    thrown = 0
    with worded(app.settings), closing(connect(app.settings, text=False)) as redis:
        for at in range(0, len(names), PAGE):
            page = names[at : at + PAGE]
            letters = [
                _read(*one, app.settings.namespace) for one in _records(redis, app.keys.dead_messages, page)
            ]
            with redis.pipeline(transaction=True) as pipe:
                for letter in letters:  # what was asked for under its idempotency key may be asked for again
                    pipe.delete(app.keys.asked(letter.task_id).encode(errors="replace"))
                    if letter.attachment:
                        pipe.unlink(letter.attachment.encode(errors="replace"))
                pipe.hdel(app.keys.dead_messages, *page)
                pipe.zrem(app.keys.dead, *page)
                thrown += int(pipe.execute()[-2])
    return thrown
