"""What this worker holds, and that it still lives: claimed messages, their leases, the sweep of others'."""

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any, NamedTuple

from gaelp_tasks.connections import Keys, Refused, ScriptUnknown, SyncRedis, unavailable
from gaelp_tasks.queues import SYSTEM, Place, lists
from gaelp_workers.dispatch import Free, Kind, Offer
from gaelp_workers.scripts import ALL, BURY, CLAIM, GIVE_BACK, RENEW, SORT, SWEEP, TIDY, Script

__all__ = ["Held", "Keeper", "Leases", "connection_name"]

logger = logging.getLogger(__name__)

SWEEPS = 3  #: per beat, so that what is due is published soon
SWEEP_AT_MOST = 500  #: of each kind in one script; the next sweep takes the rest
CONNECTION = "gaelp:"  #: with the holder behind it, the name of its connection in CLIENT LIST
IDLE_LOOK = 4  #: beats between two looks while nobody else holds anything
STRAY_LOOKS = 5  #: in a row at a lease of ours that nothing here holds: its claim was never answered
LOOKS = 2  #: in a row without its connection, and a holder is dead at the next
TOLD = "__redis__:invalidate"  #: where Redis tells of keys that have changed
SWEPT_S = 3600  #: as the sweep keeps its marks
LOOK_AT_MOST = 200  #: messages one claim may look at, so that junk cannot keep Redis busy


def connection_name(holder: str) -> str:
    """How a holder's connection is called in CLIENT LIST; when the name is gone, so is the process."""
    return f"{CONNECTION}{holder}"


class Held(NamedTuple):
    """The task of a message that is held."""

    id: str
    kind: Kind = Kind.SLOT
    alone: bool = False  #: it has seen workers die, and nothing else may be held beside it


class Swept(NamedTuple):
    """What a sweep did."""

    back: int  #: messages given back
    due: int  #: messages whose time had come
    poison: list[str]  #: tasks whose messages killed the worker in which they ran alone


class Leases:
    """The messages that this process holds. Safe to use from any thread.

    `holder` names this process for as long as it lives; every tag begins with it. `results` is the prefix of
    Celery's results, '' where another Redis keeps them. Raises what redis-py raises.
    """

    def __init__(
        self, redis: SyncRedis, keys: Keys, *, holder: str, ttl_s: float, claims_ttl_s: float, results: str
    ) -> None:
        self.holder = holder
        self.ttl_s = ttl_s
        self._redis = redis
        self._keys = keys
        self._claims_ttl_s = claims_ttl_s
        self._results = results
        self._held: dict[str, Held] = {}  # by tag
        self._begun: set[str] = set()  # tags of those that a thread has taken
        self._owed: set[str] = set()  # done, and Redis could not be told
        self._batches = count(1)

    @property
    def held(self) -> dict[str, Held]:
        """By tag, as of now."""
        return dict(self._held)

    @property
    def idle(self) -> list[str]:
        """Tags of those that nothing has begun to run."""
        return [tag for tag in self.held if tag not in self._begun]

    @property
    def kinds(self) -> list[Kind]:
        """What those held take, as of now."""
        return [task.kind for task in self.held.values()]

    @property
    def alone(self) -> bool:
        """Whether something is held beside which nothing else may be."""
        return any(task.alone for task in self.held.values())

    def claim_command(
        self, offer: Offer, room: Free, inboxes: Collection[str], *, most_bytes: int
    ) -> list[Any]:
        """The command that takes messages from what is offered, the most urgent first, while there is room.

        `inboxes` are those among the queues that are sorted; names are without the namespace.
        """
        keys = self._keys
        fixed = (
            keys.unacked,
            keys.leases,
            keys.parked,
            keys.parked_messages,
            keys.dead,
            keys.dead_messages,
            keys.suspects,
            keys.suspects_taker,
        )
        marks = {SYSTEM: "s"} | dict.fromkeys(inboxes, "i")
        return [
            "EVALSHA",
            CLAIM.sha,
            len(fixed) + len(offer.queues),
            *fixed,
            *(keys.queue(name) for name in offer.queues),
            *room,
            LOOK_AT_MOST,
            int(self.ttl_s * 1000),
            self.holder,
            f"|{next(self._batches)}.",
            len(self._held),
            most_bytes,
            int(self._claims_ttl_s * 1000),
            keys.claims(""),
            keys.holder(""),
            keys.deaths(""),
            keys.cancel(""),
            self._results,
            keys.stream(""),
            *(
                f"{group}{marks.get(name, '')}"
                for name, group in zip(offer.queues, offer.groups, strict=True)
            ),
        ]

    def sort(self, places: Sequence[tuple[str, bytes, Place]]) -> set[str]:
        """Move messages of inboxes, each from its Redis list to its place; the queues they went to."""
        if not places:
            return set()
        keys = [self._keys.queues]
        told = [self._keys.bell]
        for source, message, place in places:
            keys += [source, self._keys.queue(lists(place.queue)[place.step])]
            told += [hashlib.sha1(message, usedforsecurity=False).hexdigest(), place.queue]
        self._run(SORT, keys, told)
        return {place.queue for _, _, place in places}

    def took(self, tag: str, task: Held) -> None:
        """A claim brought this message."""
        self._held[tag] = task

    def begin(self, task_id: str) -> None:
        """A thread takes this task: from now on it ends, and is not given back unasked."""
        self._begun.update(tag for tag, task in self.held.items() if task.id == task_id)

    def spoil(self, task_id: str) -> None:
        """Celery could not even run this task: what was not settled of it goes to the dead letters."""
        for tag in [tag for tag, task in self.held.items() if task.id == task_id]:
            self.bury(tag, "cannot be run")

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
            pipe.execute()

    def _forget(self, tag: str) -> None:
        self._held.pop(tag, None)
        self._begun.discard(tag)

    def give_back(self, *tags: str) -> None:
        """To the front of their lists; the first tag named is taken again first."""
        if not tags:
            return
        try:
            keys = self._keys
            self._run(GIVE_BACK, (keys.unacked, keys.leases, keys.queues), (keys.namespace, *reversed(tags)))
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
        keys = self._keys
        where = (
            keys.unacked,
            keys.leases,
            keys.parked,
            keys.parked_messages,
            keys.dead,
            keys.dead_messages,
            keys.queues,
        )
        told = (
            SWEEP_AT_MOST,
            keys.swept(""),
            keys.deaths(""),
            int(self._claims_ttl_s * 1000),
            keys.namespace,
        )
        return Swept(*self._run(SWEEP, where, (*told, *(f"{holder}|" for holder in dead)), redis=redis))

    def waiting(self, redis: SyncRedis, *, also: Iterable[str] = (), tidy: bool = False) -> set[str]:
        """The queues of models that may hold something.

        `also`: more queues to look at; who publishes without our library names none. To `tidy` is to forget
        those that hold nothing.
        """
        known: Any = redis.smembers(self._keys.queues)
        if known and tidy:
            every = [self._keys.queue(name) for queue in known for name in lists(queue)]
            self._run(TIDY, [self._keys.queues, *every], [len(every) // len(known), *known], redis=redis)
        asked = [queue for queue in also if queue not in known]
        with redis.pipeline(transaction=False) as pipe:
            for queue in asked:
                pipe.exists(*(self._keys.queue(name) for name in lists(queue)))
            found = pipe.execute()
        return {*known, *(queue for queue, there in zip(asked, found, strict=True) if there)}

    def models(self, redis: SyncRedis, since_s: float) -> set[str]:
        """Models that some node said it has, after this Unix time, as queues call them."""
        named: Any = redis.zrangebyscore(self._keys.models, since_s * 1000, "+inf")
        return set(named)

    def holders(self, redis: SyncRedis) -> dict[str, float]:
        """Everybody who holds anything, with the latest end of a lease, Unix time in ms."""
        ends: dict[str, float] = {}
        leases: Any = redis.zrange(self._keys.leases, 0, -1, withscores=True)
        for tag, end in leases:
            holder = tag.partition("|")[0]
            ends[holder] = max(end, ends.get(holder, 0.0))
        return ends

    def strays(self, redis: SyncRedis) -> set[str]:
        """Tags that Redis has as held by us, and nothing here holds."""
        leases: Any = redis.zrange(self._keys.leases, 0, -1)
        ours = {tag for tag in leases if tag.startswith(f"{self.holder}|")}
        return ours - self.held.keys() - self._owed

    def forsake(self, redis: SyncRedis, tags: Sequence[str]) -> None:
        """Give back what never came here; should it come after all, its lease counts as ended."""
        with suppress(Refused), redis.pipeline(transaction=False) as pipe:  # full; to give back makes room
            for tag in tags:
                pipe.set(self._keys.swept(tag), "", ex=SWEPT_S)
            pipe.execute()
        self.give_back(*tags)

    def bell(self) -> tuple[Any, int]:
        """A subscription to the doorbell, connected, and Redis' number of its connection.

        It also hears what Redis tells whoever tracks keys and names this connection.
        """
        bell = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        bell.execute_command("CLIENT", "ID")
        number = int(bell.connection.read_response())
        bell.subscribe(self._keys.bell, TOLD)
        return bell, number

    def load(self) -> None:
        """Teach Redis the scripts; it forgets them when it restarts."""
        for script in ALL:
            self._redis.script_load(script)

    def _run(
        self, script: Script, keys: Sequence[str], arguments: Iterable[Any], *, redis: SyncRedis | None = None
    ) -> Any:
        client = redis or self._redis
        given = (len(keys), *keys, *arguments)
        try:
            return client.evalsha(script.sha, *given)
        except ScriptUnknown:
            return client.eval(script, *given)


class Keeper(threading.Thread):
    """Renews the leases and sweeps, on a thread and a connection that no task can keep busy.

    A holder that could not renew for half a lease stops its own runs, before anybody else may start them.
    """

    def __init__(
        self,
        leases: Leases,
        redis: SyncRedis,
        *,
        every_s: float,
        on_lost: Callable[[str], None],
        on_beat: Callable[[SyncRedis], None] = lambda _: None,
        on_poison: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(name="gaelp-leases", daemon=True)
        self._leases = leases
        self._redis = redis
        self._every_s = every_s
        self._on_lost = on_lost
        self._on_beat = on_beat
        self._on_poison = on_poison
        self._clock = clock
        self._renewed_at = clock()
        self._seen: set[str] = set()  # holders whose connection was there, since Redis answers us
        self._missed: dict[str, int] = {}  # holder -> at how many looks in a row it was not
        self._ends: dict[str, float] = {}  # latest end of a lease of each other holder, at the last look
        self._strays: dict[str, int] = {}  # tag that nothing here holds -> at how many looks in a row
        self._lost: set[str] = set()  # tags of what was stopped because its lease had ended
        self._sees_clients = True
        self._beats = 0
        self._over = threading.Event()

    def start(self) -> None:
        """Be seen to live before anything is held. Raises what redis-py raises."""
        self._redis.ping()
        super().start()

    def run(self) -> None:
        """Until `stop`."""
        while True:
            try:
                self.beat()
            except Exception:
                logger.exception("Leases could not be renewed; the next beat tries again.")
            for _ in range(SWEEPS - 1):
                if self._over.wait(self._every_s / SWEEPS):
                    return
                with suppress(*unavailable):  # the next beat tells
                    self._sweep()
            if self._over.wait(self._every_s / SWEEPS):
                return

    def stop(self) -> None:
        """End; what is held then runs out by itself."""
        self._over.set()

    def beat(self) -> None:
        """One renewal, one look at the others, one sweep; a slow Redis is asked to renew in between, too."""
        try:
            self._renew()
            self._leases.pay(self._redis)
            dead = self._dead()
            self._renew_in_time()
            self._sweep(dead)
            self._renew_in_time()
            self._give_back_strays()
            self._on_beat(self._redis)
        except unavailable as error:
            self._seen.clear()  # after a restart or a failover nobody's name is there yet
            self._missed.clear()
            if self._clock() - self._renewed_at > self._leases.ttl_s / 2:
                logger.warning("Cannot renew leases (%s): what runs here is stopped.", error)
                self._lose(self._leases.held)

    def _renew(self) -> None:
        asked_at = self._clock()
        lost = self._leases.renew(self._redis)
        self._renewed_at = asked_at
        self._lose(lost)

    def _renew_in_time(self) -> None:
        if self._clock() - self._renewed_at > self._every_s:
            self._renew()

    def _give_back_strays(self) -> None:
        """What a claim brought whose answer never came here: nobody would run it until its lease ends."""
        there = self._leases.strays(self._redis)
        self._strays = {tag: self._strays.get(tag, 0) + 1 for tag in there}
        late = [tag for tag, looks in self._strays.items() if looks > STRAY_LOOKS]
        if late:
            logger.warning("Giving back %d messages whose claim was never answered.", len(late))
            self._leases.forsake(self._redis, late)

    def _sweep(self, dead: Iterable[str] = ()) -> None:
        """All that is due or was forsaken; what takes longer than a beat is for the next one."""
        until = self._clock() + self._every_s
        while not self._over.is_set() and self._clock() < until:
            swept = self._leases.sweep(self._redis, dead)
            for task_id in swept.poison:
                logger.error(
                    "Task %s killed the worker in which it ran alone: it is a dead letter now.", task_id
                )
                self._on_poison(task_id)
            if max(swept.back, swept.due) < SWEEP_AT_MOST:
                return

    def _lose(self, tags: Iterable[str]) -> None:
        """Stop what ran under these; once, for the same task may be claimed here anew meanwhile."""
        held = self._leases.held
        self._lost &= held.keys()
        for tag in tags:
            if tag in held and tag not in self._lost:  # else it has ended meanwhile
                self._lost.add(tag)
                self._on_lost(held[tag].id)

    def _dead(self) -> set[str]:
        """Holders whose connection is gone, and which renew no lease any more.

        A living one opens its connection anew within a beat of its own.
        """
        ends = self._leases.holders(self._redis)
        ends.pop(self._leases.holder, None)
        others = ends.keys()
        renewed = {holder for holder, end in ends.items() if end > self._ends.get(holder, end)}
        self._ends = ends
        looks = self._beats % IDLE_LOOK == 0 or bool(others)
        self._beats += 1
        self._missed = {holder: looks for holder, looks in self._missed.items() if holder in others}
        if not looks or not self._sees_clients:
            return set()
        try:
            clients: Any = self._redis.client_list()
        except Refused as error:
            logger.warning("CLIENT LIST is refused (%s): dead workers are noticed by their leases.", error)
            self._sees_clients = False
            return set()
        there = {str(client.get("name")).removeprefix(CONNECTION) for client in clients}
        self._seen = (self._seen | there) & (others | there)
        gone = others - there - renewed
        self._missed = {holder: self._missed.get(holder, 0) + 1 for holder in gone}
        return {holder for holder, looks in self._missed.items() if looks > LOOKS and holder in self._seen}
