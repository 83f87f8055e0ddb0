"""kombu's Redis transport with an atomic claim in place of BRPOP; only workers use it, publishers do not.

kombu takes a message off its list and notes who has it in two steps: a worker that dies between them loses
it. Here one script does both, and it also refuses junk, parks what is not due and raises the claim number.
"""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from queue import Empty
from time import monotonic, time
from typing import Any, ClassVar

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.json import loads

from gaelp_tasks.connections import Refused, Replica, ScriptUnknown, lost
from gaelp_tasks.queues import INBOXES, SEPARATOR, SYSTEM, TRAINING, model_of, place, tier_of
from gaelp_workers.dispatch import (
    CLOSED,
    JOBS,
    Capacity,
    Free,
    Held,
    Kind,
    free,
    gains,
    offer,
)
from gaelp_workers.envelope import fault, fault_of_broadcast
from gaelp_workers.known import KnownQueues
from gaelp_workers.leases import Leases
from gaelp_workers.preemption import beyond, victims
from gaelp_workers.turns import Turns

__all__ = ["SCHEME", "Channel", "QoS", "Transport"]

logger = logging.getLogger(__name__)

SCHEME = "claim"  #: what Celery's banner and log call our connection
TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"

REPLIES = ".reply.celery.pidbox"  #: how Celery's queues of replies end
POLL_S = 0.01  #: from an answer to the next claim, where Redis does not tell of what comes
TURN_S = 0.4  #: the loop turns so often with nothing to do, and claims where Redis does tell
PARTS = 6  #: of each message that a claim brings
RINGS = 1000  #: heard at once; the rest at the next turn
ALLOWED_S = 0.002  #: the capacity is asked again after this
ECHO_S = 0.005  #: after a claim that took something Redis tells us of that, too
PAUSE_S = 1.0  #: after Redis refused a claim: it is full, or has become a replica


class QoS(kombu_redis.QoS):
    """Acknowledgements by lease; they need no channel, so they outlive a lost connection."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """The claim has noted it in Redis already."""
        virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def can_consume(self) -> bool:
        """Always: the claim says how much there is room for, and inboxes are sorted while there is none."""
        return True

    def ack(self, delivery_tag: str) -> None:
        """It is done."""
        Transport.leases.done(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Back to its list, or to the dead letters."""
        if requeue:
            Transport.leases.give_back(delivery_tag)
        else:
            Transport.leases.bury(delivery_tag, "rejected")
        virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the keeper sweeps our leases, and `unacked` belongs to other apps on this Redis."""

    def restore_unacked_once(self, stderr: Any = None) -> None:  # noqa: ARG002  kombu's signature
        """Nothing: what runs goes on under its lease, whatever became of the connection."""
        self._on_collect.cancel()
        delivered: Any = self._delivered
        delivered.restored = True  # or it would complain of what is left there


class Channel(kombu_redis.Channel):
    """A channel whose fetch is a claim."""

    QoS = QoS
    _in_poll: Any
    _brpop_sent_at: Any
    _claiming = True  # what is under way is a claim
    _resume_at = 0.0  # no claim before: the queues were empty
    _paused_until = 0.0  # nor before this, whatever rings: Redis refused
    _rings = 0  # since the last claim was sent
    _echo_until = 0.0  # the first ring tells of what our own claim took
    _told = False  # whether Redis tells of what comes
    _room = Free({}, 0, 0)  # that the last claim left: what would have filled it was not there
    _capacity = CLOSED
    _allowed_at = -ALLOWED_S  # `monotonic` when that was asked
    _changes = -1  # of what is held, as of the turn before
    _turn = 0  # of the models' queues
    _tracked: Any = None  # the socket on which Redis was asked to tell what changes

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Send a claim for as many messages as there is room for.

        Replies of other workers, which mingle waits for on this channel, are no tasks: they are fetched as
        kombu does.
        """
        self._claiming = not any(queue.endswith(REPLIES) for queue in self.active_queues)
        if not self._claiming:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]
            return
        now = monotonic()
        if now < self._paused_until:
            return
        leases = Transport.leases
        if now < self._resume_at and leases.changes == self._changes and now - self._allowed_at < ALLOWED_S:
            return  # it is as it was at the turn before, and a busy loop turns thousands of times a second
        self._changes = leases.changes
        held, capacity = leases.held, self._allowed()
        room = free(held.values(), capacity)
        if (now < self._resume_at and not gains(room, self._room)) or leases.alone:
            return
        consumed = self._queue_cycle.consume(len(self.active_queues))
        if not consumed:
            return
        room = room._replace(beyond=beyond(leases.running.values(), capacity.models))
        self._room, self._rings = room, 0
        self._turn += 1
        known, models = Transport.known, capacity.models
        waiting = {queue: found for queue, found in known.waiting.items() if tier_of(queue) in consumed}
        first = Transport.turns.due(waiting, models, capacity.slots, held.values(), time())
        jobs = known.jobs and JOBS in capacity.slots
        offered = offer(consumed, known.served, self._turn, first, jobs=jobs)
        command = leases.claim_command(offered, room, INBOXES, most_bytes=Transport.most_bytes)
        connection: Any = self.client.connection
        self._track(connection)
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        connection.send_command(*command)

    def _allowed(self) -> Capacity:
        """What may be held here, as of a moment ago."""
        now = monotonic()
        if now - self._allowed_at >= ALLOWED_S:
            self._capacity, self._allowed_at = Transport.capacity(), now
        return self._capacity

    def _track(self, connection: Any) -> None:
        """Have Redis tell the doorbell of everything that others put into our queues, once a connection."""
        line = self.connection.bell_id
        if not line or self._tracked is connection._sock:  # noqa: SLF001  one object may connect anew
            return
        self._tracked = connection._sock  # noqa: SLF001
        prefixes = [
            word
            for name in (*INBOXES, SYSTEM, *((TRAINING,) if Transport.runs_jobs else ()))
            for word in ("PREFIX", f"{self.global_keyprefix}{name}")
        ]
        connection.send_command("CLIENT", "TRACKING", "ON", "REDIRECT", line, "BCAST", *prefixes, "NOLOOP")
        try:
            connection.read_response()
            self._told = True
        except Refused as error:
            self._told = False
            logger.info("Redis does not tell of changes (%s): they are heard within a poll.", error)
        Transport.known.told = self._told

    def _brpop_read(self, **options: Any) -> bool:
        """Hand out what a claim brought."""
        if not self._claiming:
            return bool(super()._brpop_read(**options))  # type: ignore[no-untyped-call]
        connection = self.client.connection
        try:
            taken, unsorted, told, more, (slots, seats, errands) = connection.read_response()
        except Refused as error:
            Transport.polled_at = monotonic()
            self._refused(error, connection)
            raise Empty from None
        except self.connection_errors:
            connection.disconnect()
            raise
        finally:
            self._in_poll = None
        room = self._room
        self._room = Free(dict(zip(room.slots, slots, strict=True)), seats, errands, room.models)
        Transport.polled_at = monotonic()
        self._echo_until = Transport.polled_at + ECHO_S if taken else 0.0
        if monotonic() - self._brpop_sent_at > Transport.leases.ttl_s / 2:  # this process stood still
            with suppress(Refused):  # then their leases end
                Transport.leases.give_back(*(tag.decode() for tag in taken[1::PARTS]))
            taken = []
        for task_id in told:
            logger.info("Task %s came again after its result was told: dropped.", task_id.decode())
        try:
            moved = self._sort(unsorted)
        except Refused as error:
            self._refused(error, connection)
            moved = False
        self._look_again(at_once=bool(moved or more))
        if not (taken or moved or more):
            raise Empty
        opened = [self._open(*taken[at : at + PARTS]) for at in range(0, len(taken), PARTS)]
        how = zip(taken[1::PARTS], taken[3::PARTS], strict=True)
        self._make_way([tag.decode() for tag, came in how if b"b" in came])
        for queue, held, payload in opened:  # all are held by now, whatever becomes of the first
            self._hand_out(queue, held, payload)
        return True

    def _make_way(self, pushing: list[str]) -> None:
        """Stop runs of lower tiers for those that were taken beyond the free slots, before those begin."""
        leases = Transport.leases
        staying = leases.staying
        if pushing := [tag for tag in pushing if tag in staying]:
            for tag in victims(staying, leases.running, pushing, Transport.capacity(), Transport.writing()):
                Transport.preempt(tag)

    def _sort(self, unsorted: list[bytes]) -> bool:
        """Move an inbox's messages to the queues of their models; False where there are none."""
        places, stuck = [], set()
        for at in range(0, len(unsorted), 2):
            source, message = unsorted[at].decode(), unsorted[at + 1]
            to = None if source in stuck else place(message, self._queue(source))
            if to is None:
                stuck.add(source)
            else:
                places.append((source, message, to))
        queues = Transport.leases.sort(places)
        Transport.known.heard(*queues)
        if places and not queues:  # somebody else has sorted them, or where they belong is no list
            self._pause(POLL_S)
        return bool(queues)

    def _queue(self, name: str) -> str:
        """The queue of a Redis list."""
        return name.removeprefix(self.global_keyprefix).partition(SEPARATOR)[0]

    def _open(
        self, source: bytes, tag: bytes, claim: int, how: bytes, preempted: int, message: bytes
    ) -> tuple[str, str, dict[str, Any] | None]:
        """The queue, the tag and the content, from now on held; None where Python cannot read it."""
        queue, held = self._queue(source.decode()), tag.decode()
        try:
            payload: Any = loads(message.decode())  # type: ignore[no-untyped-call]
            payload["properties"]["delivery_tag"] = held
            headers = payload["headers"]
            headers["gaelp_claim"] = claim
            task = Held(
                headers["id"],
                Kind.of(queue, headers["task"]),
                alone=b"a" in how,
                task=headers["task"],
                model=model_of(queue),
                tier=tier_of(queue),
                since_s=monotonic(),
                preempted=preempted,
                turn=b"t" in how,
            )
            Transport.leases.took(held, task)
            Transport.turns.took(task, self._room.models)
        except Exception:  # noqa: BLE001  the decoder raises whatever it stumbles over
            return queue, held, None
        return queue, held, payload

    def _hand_out(self, queue: str, held: str, payload: dict[str, Any] | None) -> None:
        if payload is None:
            self._bury(held, queue, "cannot be read")
            return
        try:
            if wrong := fault(payload):
                self._bury(held, queue, wrong)
                return
            beside = SYSTEM if queue == TRAINING else str(tier_of(queue) or queue)
            consumed = queue if queue in self.active_queues else beside
            self.connection._deliver(payload, consumed)  # noqa: SLF001  as kombu's own channels do
        except lost:  # kombu's connection_errors have KeyError among them, which a message can cause
            raise
        except Exception as error:  # noqa: BLE001  Celery raises whatever it stumbles over
            self._bury(held, queue, f"cannot be handled ({type(error).__name__})")

    def _bury(self, tag: str, queue: str, reason: str) -> None:
        # no traceback: what it quotes may be a prompt
        logger.error("A message in %s is kept among the dead letters: %s (gaelp dlq list).", queue, reason)
        task = Transport.leases.held.get(tag)
        try:
            Transport.leases.bury(tag, reason)
        except Refused as error:  # its lease ends, and the next claim finds the same
            logger.warning("Redis refuses to keep it now (%s).", error)
            return
        if task is not None:
            Transport.on_refused(task.id, reason)

    def _receive_one(self, c: Any) -> Any:
        """Read a command or an event that was called out; what cannot be read is nobody's work."""
        try:
            return super()._receive_one(c)  # type: ignore[no-untyped-call]
        except (Empty, *self.connection_errors):
            raise
        except Exception as error:  # noqa: BLE001  kombu raises whatever it stumbles over
            logger.warning("A broadcast cannot be read: %s.", type(error).__name__)
            raise Empty from None

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        if wrong := fault_of_broadcast(message):
            logger.warning("A broadcast is ignored: %s.", wrong)
            return False
        return bool(super()._deliver_fanout_message(message, exchange))  # type: ignore[no-untyped-call]

    def _refused(self, error: Exception, connection: Any) -> None:
        """Redis will not run the claim now; the worker lives on and asks again."""
        if isinstance(error, ScriptUnknown):
            with suppress(Refused):
                Transport.leases.load()
            self._pause(POLL_S)
            return
        # a failover: look for the new master; of a script Redis 6 says so in its text alone
        if isinstance(error, Replica) or "READONLY" in str(error):
            connection.disconnect()
        logger.warning("Redis refuses a claim (%s); asking again in %g s.", error, PAUSE_S)
        self._pause(PAUSE_S)

    def _pause(self, seconds: float) -> None:
        self._paused_until = monotonic() + seconds
        self.connection.turn_in(seconds)

    def ring(self, *names: str) -> None:
        """Something came into these lists: look now, if anything can be taken."""
        Transport.known.heard(*map(self._queue, names))
        self._rings += 1
        if self._room.some and not self._in_poll:  # else what is under way sees to it
            self._look_again()

    def _look_again(self, *, at_once: bool = False) -> None:
        """When to claim next; at an echo not now, which would only cost the task that the claim brought."""
        echo = self._rings == 1 and monotonic() < self._echo_until
        if at_once or (self._rings and not echo):
            self._resume_at = 0.0
        elif echo or not self._told:
            self._resume_at = monotonic() + POLL_S
            self.connection.turn_in(POLL_S)
        else:
            self._resume_at = monotonic() + TURN_S / 2  # at the next turn, not at the one after it


class Transport(kombu_redis.Transport):
    """What the worker's consumer connects with; the worker sets the first seven before it does."""

    Channel = Channel
    leases: ClassVar[Leases]
    known: ClassVar[KnownQueues]
    on_refused: ClassVar[Callable[[str, str], None]]  #: hears of a task that will never run, and why
    capacity: ClassVar[Callable[[], Capacity]]  #: what may be held here at once, right now
    writing: ClassVar[Callable[[], Collection[str]]] = tuple  #: ids of runs whose model has begun to answer
    preempt: ClassVar[Callable[[str], None]]  #: stops the run of a tag for a higher tier
    turns: ClassVar[Turns]
    runs_jobs: ClassVar[bool] = False  #: whether this worker ever has places for training jobs
    most_bytes: ClassVar[int]  #: of a message; a larger one becomes a dead letter unread
    _loop: Any
    _turns: ClassVar[Any] = None  # the timer that turns it
    bell_id: int = 0  #: Redis' number of the doorbell's connection; 0: it has none
    polled_at: ClassVar[float] = 0.0  #: `monotonic` of the last answer to a claim; 0 before the first

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Hear the doorbell, and turn now and then whatever it tells."""
        super().register_with_event_loop(connection, loop)  # type: ignore[no-untyped-call]
        self._loop = loop
        self.keep_turning()
        try:
            bell, self.bell_id = Transport.leases.bell()
        except Refused as error:
            Transport.known.told = False
            logger.info("Redis may not tell of changes (%s): they are heard within a poll.", error)
            return
        # redis-py shows no socket; of the subscription itself it would open a new one, unheard by the loop
        loop.add_reader(bell.connection._sock, self._on_bell, bell)  # noqa: SLF001

    def keep_turning(self) -> None:
        """Have the loop turn now and then with nothing to do."""
        if Transport._turns is not None:  # of the connection before, perhaps: Celery does not know of it
            Transport._turns.cancel()
        Transport._turns = self._loop.call_repeatedly(TURN_S, _turn)

    def turn_in(self, seconds: float) -> None:
        """Have the loop turn once, then."""
        self._loop.call_later(seconds, _turn)

    def _on_bell(self, bell: Any) -> None:
        """Something came: look at once. A broken connection is one for the whole consumer."""
        names: list[str] = []
        for _ in range(RINGS):
            _, _, told = bell.connection.read_response()
            names += told or ()  # nothing, where all keys are gone
            if not bell.connection.can_read(timeout=0):
                break
        else:  # what was received and not read wakes nobody
            self._loop.call_soon(self._on_bell, bell)
        for channel in self.channels:
            channel.ring(*names)


def _turn() -> None:
    """A turn of the loop is all that is wanted: kombu asks each channel at its beginning."""
