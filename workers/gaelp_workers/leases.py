"""What this worker holds: claimed messages and their leases, and what it says to Redis about them."""

import hashlib
import logging
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any, NamedTuple

from gaelp_tasks.connections import Refused, SyncRedis, unavailable
from gaelp_tasks.keys import Keys
from gaelp_tasks.queues import SEPARATOR, SYSTEM, Place, lists, tier_of
from gaelp_tasks.scripts import Script
from gaelp_tasks.sweeping import Holders, Sweep, Swept
from gaelp_workers.dispatch import Free, Held, Kind, Offer, pool_of
from gaelp_workers.scripts import ALL, BURY, CLAIM, GIVE_BACK, HEADS, RENEW, SORT, TIDY

__all__ = ["TOLD", "Head", "Leases"]

logger = logging.getLogger(__name__)

TOLD = "__redis__:invalidate"  #: where Redis tells of keys that have changed
SWEPT_S = 3600  #: as the sweep keeps its marks
READ_AT_MOST = 1024**2  #: bytes of a message whose age is looked up at each beat
LOOK_AT_MOST = 200  #: messages one claim may look at, so that junk cannot keep Redis busy


class Head(NamedTuple):
    """The next message of a list, and how many wait there with it."""

    size: int
    id: str  #: '' where it cannot be read
    since_s: float | None  #: Unix time when it was published, or due if that was later; None: not told


class Leases:
    """The messages that this process holds. Safe to use from any thread.

    `holder` names this process for as long as it lives; every tag begins with it. `poison_deaths` is how many
    workers a message may see die. `results` is the prefix of Celery's results, '' where another Redis keeps
    them. `tenant_max` invocations of one tenant may run at once, over all workers; 0: any number. Raises what
    redis-py raises.
    """

    def __init__(
        self,
        redis: SyncRedis,
        keys: Keys,
        *,
        holder: str,
        ttl_s: float,
        claims_ttl_s: float,
        poison_deaths: int,
        results: str,
        tenant_max: int = 0,
    ) -> None:
        self.holder = holder
        self.ttl_s = ttl_s
        self._redis = redis
        self._keys = keys
        self.claims_ttl_s = claims_ttl_s
        self._sweep = Sweep(keys, claims_ttl_s=claims_ttl_s, poison_deaths=poison_deaths)
        self._results = results
        self._tenant_max = tenant_max
        self._held: dict[str, Held] = {}  # by tag
        self._begun: set[str] = set()  # tags of those that a thread has taken
        self._leaving: set[str] = set()  # tags of those that were stopped, and hold their slot until they end
        self._owed: set[str] = set()  # done, and Redis could not be told
        self._beside: dict[str, str] = {}  # key of what goes with an acknowledgement, by tag
        self._batches = count(1)
        self.others = Holders(keys, holder)  #: that hold messages, too
        self.changes = 0  #: counts up whenever something is held or is no more; never back

    @property
    def held(self) -> dict[str, Held]:
        """By tag, as of now."""
        return dict(self._held)

    @property
    def idle(self) -> list[str]:
        """Tags of those that nothing has begun to run."""
        return [tag for tag in self.held if tag not in self._begun]

    @property
    def staying(self) -> dict[str, Held]:
        """Those that were not told to make way, by tag, as of now."""
        return {tag: task for tag, task in self.held.items() if tag not in self._leaving}

    @property
    def running(self) -> dict[str, Held]:
        """Those of them that a thread has taken."""
        return {tag: task for tag, task in self.staying.items() if tag in self._begun}

    def leaves(self, tag: str) -> None:
        """It was told to make way."""
        self._leaving.add(tag)

    @property
    def alone(self) -> bool:
        """Whether something is held beside which nothing else may be."""
        return any(task.alone for task in self.held.values())

    @property
    def _places(self) -> tuple[str, ...]:
        """Where messages are that are in no queue, in the order of every script."""
        keys = self._keys
        return (
            keys.unacked,
            keys.leases,
            keys.parked,
            keys.parked_messages,
            keys.dead,
            keys.dead_messages,
        )

    def claim_command(
        self, offer: Offer, room: Free, inboxes: Collection[str], *, most_bytes: int
    ) -> list[Any]:
        """The command that takes messages from what is offered, the most urgent first, while there is room.

        `inboxes` are those among the queues that are sorted; names are without the namespace.
        """
        keys = self._keys
        place = {pool: number for number, pool in enumerate(room.slots, 1)}

        def told(number: int, name: str, group: int) -> str:
            pool = pool_of(name.partition(SEPARATOR)[0], room.models)  # a turn may name one list of a queue
            if number < offer.turns:
                return f"{group}t:{place[pool]}+0"
            tier = tier_of(name)
            more = room.beyond.get((pool, tier), 0) if tier else 0
            return f"{group}{marks.get(name, '')}:{place[pool]}+{more}"

        fixed = (*self._places, keys.suspects, keys.suspects_taker)
        marks = {SYSTEM: "s"} | dict.fromkeys(inboxes, "i")
        return [
            "EVALSHA",
            CLAIM.sha,
            len(fixed) + len(offer.queues),
            *fixed,
            *(keys.queue(name) for name in offer.queues),
            ",".join(map(str, room.slots.values())),
            room.seats,
            room.errands,
            LOOK_AT_MOST,
            int(self.ttl_s * 1000),
            self.holder,
            f"|{next(self._batches)}.",
            len(self._held),
            most_bytes,
            int(self.claims_ttl_s * 1000),
            keys.claims(""),
            keys.holder(""),
            keys.deaths(""),
            keys.cancel(""),
            self._results,
            keys.stream(""),
            keys.preempted(""),
            self._tenant_max,
            keys.tenant(""),
            keys.attachment("").removesuffix(":"),
            *(
                told(number, *queue)
                for number, queue in enumerate(zip(offer.queues, offer.groups, strict=True))
            ),
        ]

    def sort(self, places: Sequence[tuple[str, bytes, Place]]) -> set[str]:
        """Move messages of inboxes, each from its Redis list to its place; the queues they went to.

        Nothing where others have moved them all, or where they belong is no list.
        """
        if not places:
            return set()
        keys = [self._keys.queues]
        told = []
        for source, message, place in places:
            keys += [source, self._keys.queue(lists(place.queue)[place.step])]
            told += [hashlib.sha1(message, usedforsecurity=False).hexdigest(), place.queue]
        return {place.queue for _, _, place in places} if self._run(SORT, keys, told) else set()

    def took(self, tag: str, task: Held) -> None:
        """A claim brought this message."""
        self._held[tag] = task
        self.changes += 1

    def begin(self, task_id: str) -> set[Kind]:
        """A thread takes this task: from now on it ends, and is not given back unasked.

        Returns what it takes; nothing where its lease was lost meanwhile.
        """
        begun = {tag: task.kind for tag, task in self.held.items() if task.id == task_id}
        self._begun.update(begun)
        return set(begun.values())

    def spoil(self, task_id: str) -> None:
        """Celery could not even run this task: what was not settled of it goes to the dead letters."""
        for tag in [tag for tag, task in self.held.items() if task.id == task_id]:
            self.bury(tag, "cannot be run")

    def ends_with(self, tag: str, key: str) -> None:
        """Its acknowledgement, which comes next, ends the invocation: what lies there goes with it."""
        self._beside[tag] = key

    def done(self, tag: str) -> None:
        """Acknowledge: the message is gone for good; where Redis is away the keeper says it again."""
        self._forget(tag)
        try:
            self._acknowledge(tag, self._redis)
        except unavailable as error:
            self._owed.add(tag)
            logger.warning("An acknowledgement waits for Redis: %s", error)

    def pay(self, redis: SyncRedis) -> None:
        """Acknowledge what Redis could not be told before."""
        for tag in tuple(self._owed):
            self._acknowledge(tag, redis)
            self._owed.discard(tag)

    def _acknowledge(self, tag: str, redis: SyncRedis) -> None:
        # no transaction: a full Redis refuses those, and this makes room; a lease alone is nothing
        with redis.pipeline(transaction=False) as pipe:
            pipe.hdel(self._keys.unacked, tag)
            pipe.zrem(self._keys.leases, tag)
            was_ours, _ = pipe.execute()
        key = self._beside.pop(tag, None)
        if key is not None and was_ours:  # else it was given back, and runs again
            with suppress(*unavailable):  # then it is found to be lost
                redis.unlink(key)

    def _forget(self, tag: str) -> None:
        self._held.pop(tag, None)
        self._begun.discard(tag)
        self._leaving.discard(tag)
        self.changes += 1

    def give_back(self, *tags: str, redis: SyncRedis | None = None) -> None:
        """To the front of their lists; the first tag named is taken again first."""
        if not tags:
            return
        keys = self._keys
        where = (keys.unacked, keys.leases, keys.queues)
        try:
            self._run(GIVE_BACK, where, (keys.namespace, *reversed(tags)), redis=redis)
        finally:
            for tag in tags:
                self._forget(tag)

    def bury(self, tag: str, reason: str) -> None:
        """To the dead letters: this message will never run as it is."""
        keys = self._keys
        try:
            self._run(BURY, (keys.unacked, keys.leases, keys.dead, keys.dead_messages), (tag, reason))
        finally:
            self._forget(tag)

    def renew(self, redis: SyncRedis) -> list[str]:
        """Renew all; the tags whose lease had ended. They stay in `held` until their runs have stopped."""
        tags = [*self.held, *self._owed]
        if not tags:
            return []
        told = (int(self.ttl_s * 1000), self._keys.swept(""), self._keys.deaths(""), *tags)
        lost = self._run(RENEW, (self._keys.leases,), told, redis=redis)
        return [tag for tag in lost if tag in self._held]

    def sweep(self, redis: SyncRedis, dead: Iterable[str] = ()) -> Swept:
        """Give back what nobody holds any more and publish what is due.

        `dead`: holders that are known to have died.
        """
        return self._sweep(redis, dead)

    def named(self, redis: SyncRedis, since_s: float) -> tuple[set[str], set[str]]:
        """Queues of models that publishers named, and models that a node said it has after this Unix time."""
        with redis.pipeline(transaction=False) as pipe:
            pipe.smembers(self._keys.queues)
            pipe.zrangebyscore(self._keys.models, since_s * 1000, "+inf")
            queues, models = pipe.execute()
        return set(queues), set(models)

    def waiting(
        self, redis: SyncRedis, known: Collection[str], *, also: Iterable[str] = (), tidy: bool = False
    ) -> set[str]:
        """The queues of models that may hold something, of those that were named.

        `also`: more queues to look at; who publishes without our library names none. To `tidy` is to forget
        those that hold nothing.
        """
        if known and tidy:
            every = [self._keys.queue(name) for queue in known for name in lists(queue)]
            self._run(TIDY, [self._keys.queues, *every], [len(every) // len(known), *known], redis=redis)
        asked = [queue for queue in also if queue not in known]
        with redis.pipeline(transaction=False) as pipe:
            for queue in asked:
                pipe.exists(*(self._keys.queue(name) for name in lists(queue)))
            found = pipe.execute()
        return {*known, *(queue for queue, there in zip(asked, found, strict=True) if there)}

    def there(self, redis: SyncRedis, queue: str) -> bool:
        """Whether a queue holds anything."""
        return bool(redis.exists(*(self._keys.queue(name) for name in lists(queue))))

    def heads(self, redis: SyncRedis, queues: Iterable[str]) -> dict[str, Head]:
        """What waits first in each list of these queues that holds anything."""
        asked = [name for queue in queues for name in lists(queue)]
        if not asked:
            return {}
        keys = [self._keys.queue(name) for name in asked]
        told = self._run(HEADS, keys, [READ_AT_MOST, self._keys.preempted("")], redis=redis)
        rows = zip(*(told[part::5] for part in range(5)), strict=True)
        return {asked[at - 1]: Head(size, named, _since(sent, due)) for at, size, named, sent, due in rows}

    def strays(self, tags: Iterable[str]) -> set[str]:
        """Those of them that Redis has as held by us, and nothing here holds."""
        ours = {tag for tag in tags if tag.startswith(f"{self.holder}|")}
        return ours - self.held.keys() - self._owed

    def forsake(self, redis: SyncRedis, tags: Sequence[str]) -> None:
        """Give back what never came here; should it come after all, its lease counts as ended."""
        with suppress(Refused), redis.pipeline(transaction=False) as pipe:  # full; to give back makes room
            for tag in tags:
                pipe.set(self._keys.swept(tag), "", ex=SWEPT_S)
            pipe.execute()
        self.give_back(*tags, redis=redis)

    def bell(self) -> tuple[Any, int]:
        """A subscription to what Redis tells, connected, and the number to name when asking it to.

        Raises Refused where our user may not hear it.
        """
        bell = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        bell.execute_command("CLIENT", "ID")
        number = int(bell.connection.read_response())
        bell.subscribe(TOLD)
        bell.connection.read_response()
        return bell, number

    def load(self) -> None:
        """Teach Redis the scripts; it forgets them when it restarts."""
        for script in ALL:
            self._redis.script_load(script)

    def _run(
        self, script: Script, keys: Sequence[str], arguments: Iterable[Any], *, redis: SyncRedis | None = None
    ) -> Any:
        return script.run(redis or self._redis, keys, arguments)


def _since(published_at: str, due: str) -> float | None:
    """When a message began to wait, by its headers; what it was delayed by is no waiting."""
    times = [float(published_at)] if published_at else []
    with suppress(ValueError):
        at = datetime.fromisoformat(due)
        times.append((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    return max(times, default=None)
