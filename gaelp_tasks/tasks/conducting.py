"""Conducting a batch: few of its lines are out at a time, and what has ended is kept in SQL, once.

All that must outlive this process is in SQL before it happens in Redis: how far lines were published, and
what has ended before Redis forgets it. Who takes over from one that died publishes all lines again that may
have been published and have not ended. Their ids are always the same: of two messages the second is dropped.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from math import inf
from time import monotonic
from typing import Any, NamedTuple, Protocol, TypeVar

from gaelp_tasks.connections import unavailable
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.models.batch import Batch, BatchState, LineOutcome, closed_until
from gaelp_tasks.models.batch_work import Asked, Ended, Published, Reach

__all__ = ["Conductor", "Invocations", "Paces", "Pause"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

AWAY = (*unavailable, BrokerUnavailable)
ONE_S = 3600  #: a line's only message may come again, where who had told its end could not acknowledge it
TWO_S = 30 * 86_400  #: a second one may be queued for a node that is away
#: what becomes of a batch that is stopped, and what its lines without an outcome are told
STOPS = {
    BatchState.CANCELLED: (
        LineOutcome.CANCELLED,
        "The batch was cancelled before this line had finished.",
    ),
    BatchState.EXPIRED: (
        LineOutcome.EXPIRED,
        "The completion window of the batch closed before this line had finished.",
    ),
    BatchState.FAILED: (LineOutcome.FAILED, "The batch failed before this line had finished."),
}


class Invocations(Protocol):
    """What a conductor needs of Redis; `gaelp_tasks.tasks.batch_lines.LineTasks` says what each does."""

    def publish(self, lines: Sequence[Asked]) -> list[Ended]:
        """Publish them; the outcomes of those that are refused."""

    def ended(self, ids: Sequence[str]) -> Mapping[str, Any]:
        """Records of those that have ended, by id."""

    def wasted(self, ids: Sequence[str]) -> Mapping[str, int]:
        """Tokens that these have told for nothing, by id; those that have not are left out."""

    def clear(self, ids: Sequence[str]) -> None:
        """Forget them."""

    def void(self, ids: Sequence[str], *, all_of_them: bool, for_s: int) -> None:
        """Forget them, and drop what still comes of them within `for_s`."""

    def stop(self, ids: Sequence[str]) -> None:
        """Cancel them."""

    def redis(self) -> Any:
        """How Redis is."""


class Paces(NamedTuple):
    """How often a conductor does what, seconds."""

    soonest: float = 0.05  #: between two looks while lines end
    latest: float = 0.5  #: while none does
    beat: float = 1.0  #: says in SQL that it lives, and hears there whether to stop
    clears: float = 10.0  #: after its end a line is acknowledged for sure, and Redis may forget it
    settles: float = 5.0  #: lines that were stopped may tell what they have
    trouble: float = 1.0  #: before the next try when Redis is away
    lost: float = 600.0  #: no line has ended for so long: the messages may be lost; twice as long after that
    yields: float = 2.0  #: it stays away where it is in the way


class Pause(NamedTuple):
    """The conductor leaves; somebody shall go on."""

    after_s: float
    why: str
    gives_back: bool = False  #: by this very message, which goes back to its queue
    until: datetime | None = None  #: nobody need look before


class Conductor:
    """One life of the work on one batch.

    `verdict(number, record)` tells what became of a line; `leave()` whether to make way. Clocks are injected:
    `tick` is monotonic, `now` aware.
    """

    def __init__(  # noqa: PLR0913  what it needs from outside, each replaced in tests
        self,
        batch_id: str,
        *,
        name: str,
        batches: Batches,
        lines: Invocations,
        verdict: Callable[[int, Any], Ended],
        window: int,
        most_deaths: int,
        leave: Callable[[], Pause | None],
        paces: Paces = Paces(),  # noqa: B008  immutable
        tick: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.id, self.name = batch_id, name
        self._batches, self._lines, self._verdict = batches, lines, verdict
        self._window, self._most_deaths = window, most_deaths
        self._leave, self._sleep, self._paces = leave, sleep, paces
        self._tick, self._now = tick, now
        self._out: dict[str, int] = {}  # task id -> number of lines that may be published, without an outcome
        self._due: dict[int, str] = {}  # those of them that are to be published (again)
        self._tried: set[int] = set()  # those of which a message may be there although they are due
        self._refused: list[Ended] = []  # not noted yet
        self._clearing: deque[tuple[float, str, int]] = deque()  # when it was noted, task id, number
        self._reach = Reach()
        self._deaths = 0  # of conductors, one after another, without any progress
        self._fails = False  # for too many of them: a line that ends meanwhile is no progress
        self._exhausted = self._is_paid = False  # every line was published; a budget pays
        self._beat_at = self._asked_at = -inf  # `tick` of the last note in SQL, and of the last look at Redis
        self._life = ""  # of Redis
        self._quiet_since = self._tick()  # no line has ended
        self._patience = paces.lost
        self._moved = False  # whether something happened in this round

    async def run(self, *, ticket: int, died: bool) -> Pause | None:
        """Work until the batch is over, or somebody else shall go on.

        `died`: whoever worked on it before is known to have. Raises TakenOver, DatabaseUnavailable.
        """
        held = await self._batches.take_over(self.id, self.name, ticket=ticket, now=self._now(), died=died)
        self._reach, self._deaths, self._is_paid, batch = held.reach, held.deaths, held.is_paid, held.batch
        ready = False
        wait_s = self._paces.soonest
        while True:
            try:
                if not ready:
                    await self._find_out(in_order=held.in_order)
                    ready = True
                if self._ends_as(batch) is None:
                    batch = await self._round(batch)
                if (ends_as := self._ends_as(batch)) is not None:
                    await self._end(ends_as)
                    return None
                if self._is_done(batch):
                    await self._finalize()
                    return None
                pause = await self._pause()
                if pause is None and self._waits(batch):
                    batch = await self._note([])  # who cancels it from now on calls somebody
                    pause = self._waits(batch)
            except AWAY as error:
                logger.warning("Batch %s waits for Redis: %s", self.id, error)
                pause, wait_s = self._leave(), self._paces.trouble
            if pause is not None:
                await self._go(pause)
                return pause
            await self._sleep(wait_s)
            wait_s = self._paces.soonest if self._moved else min(self._paces.latest, wait_s * 1.5)

    # --- a round ---

    async def _round(self, batch: Batch) -> Batch:
        """Look, note, publish, clear away: in this order, for what is noted outlives us."""
        ended = [*self._refused, *await self._look()]
        is_closed = closed_until(batch, self._now()) is not None
        fresh = [] if is_closed else await self._next(batch, ended)
        self._moved = bool(ended or fresh)
        if self._moved:
            self._quiet_since, self._patience = self._tick(), self._paces.lost
        if fresh:
            self._reach = self._reach._replace(published_to=fresh[-1].number)
        if self._moved or self._tick() - self._beat_at >= self._paces.beat:
            batch = await self._note(ended)
        for line in fresh:
            self._out[line.task_id] = line.number
            self._due[line.number] = line.task_id
        if not is_closed and self._ends_as(batch) is None:
            await self._publish()
        await self._clear()
        return batch

    async def _look(self) -> list[Ended]:
        waiting = [task_id for task_id, number in self._out.items() if number not in self._due]
        # in a thread: results may be megabytes of JSON, and other runs stream on this loop
        return await self._blocking(self._ended, waiting) if waiting else []

    def _ended(self, waiting: Sequence[str]) -> list[Ended]:
        told = self._lines.ended(waiting)
        lost = self._lines.wasted(list(told)) if self._is_paid else {}
        ended = [(name, self._verdict(self._out[name], record)) for name, record in told.items()]
        return [one._replace(wasted_tokens=lost.get(name, 0)) for name, one in ended]

    async def _next(self, batch: Batch, ended: Sequence[Ended]) -> list[Published]:
        """What to publish besides, so that `window` lines are out."""
        room = self._window - (len(self._out) - len(ended))
        if self._exhausted or room <= 0 or self._ends_as(batch) or batch.state is not BatchState.IN_PROGRESS:
            return []
        fresh = await self._batches.next_lines(self.id, after=self._reach.published_to, most=room)
        self._exhausted = len(fresh) < room
        return fresh

    async def _note(self, ended: Sequence[Ended]) -> Batch:
        self._keep(one.number for one in ended)
        batch = await self._batches.progress(
            self.id, self.name, ended, self._reach, now=self._now(), forgives=not self._fails
        )
        self._beat_at = self._tick()
        self._refused = []
        numbers = {one.number for one in ended}
        for task_id in [one for one, number in self._out.items() if number in numbers]:
            self._forget(task_id)
        return batch

    def _forget(self, task_id: str) -> None:
        """It has its outcome; Redis forgets it in a while."""
        number = self._out.pop(task_id)
        self._due.pop(number, None)
        self._clearing.append((self._tick(), task_id, number))

    async def _publish(self) -> None:
        """What is due; should Redis go away meanwhile, it stays due."""
        numbers = sorted(self._due)
        if again := [number for number in numbers if number in self._tried]:
            self._disturb(again[-1])
        async for some in self._batches.asked(self.id, numbers):
            self._tried.update(line.number for line in some)
            self._refused += await self._blocking(self._lines.publish, some)
            for line in some:
                del self._due[line.number]
                self._tried.discard(line.number)

    async def _clear(self) -> None:
        """Have Redis forget what ended a while ago."""
        until = self._tick() - self._paces.clears
        while self._clearing and self._clearing[0][0] <= until:
            old = [one for one in islice(self._clearing, self._window) if one[0] <= until]
            disturbed = [task_id for _, task_id, number in old if number <= self._reach.disturbed_to]
            others = [task_id for _, task_id, number in old if number > self._reach.disturbed_to]
            await self._blocking(self._lines.void, disturbed, all_of_them=True, for_s=TWO_S)
            await self._blocking(self._lines.clear, others)
            for _ in old:
                self._clearing.popleft()
        self._reach = self._reach._replace(cleared_to=self._reach.published_to)
        self._keep(number for _, _, number in self._clearing)

    def _keep(self, numbers: Iterable[int]) -> None:
        """Redis holds something of these, which have ended."""
        lowest = min(numbers, default=self._reach.cleared_to + 1)
        self._reach = self._reach._replace(cleared_to=min(self._reach.cleared_to, lowest - 1))

    def _disturb(self, number: int) -> None:
        """There may be more than one message of the lines up to this one."""
        self._reach = self._reach._replace(disturbed_to=max(number, self._reach.disturbed_to))

    async def _pause(self) -> Pause | None:
        """Whether to make way; once a beat Redis is asked, too, and whether it has lost messages."""
        if (pause := self._leave()) is not None or self._tick() - self._asked_at < self._paces.beat:
            return pause
        seen = await self._blocking(self._lines.redis)
        self._asked_at = self._tick()
        if self._life and seen.life and seen.life != self._life:
            logger.warning("Redis has started anew: what batch %s has queued is published again.", self.id)
            self._publish_again()
        elif self._out and self._tick() - self._quiet_since >= self._patience:
            logger.warning(
                "No line of batch %s has ended for %d s: published again.", self.id, self._patience
            )
            self._quiet_since, self._patience = self._tick(), 2 * self._patience
            self._publish_again()
        self._life = seen.life or self._life
        if seen.suspects:
            return Pause(self._paces.yields, "a message needs a worker that runs nothing else")
        return None

    def _waits(self, batch: Batch) -> Pause | None:
        """Until a window opens, once nothing of it runs and Redis has forgotten what did."""
        now = self._now()
        until = closed_until(batch, now)
        if until is None or len(self._out) > len(self._due) or self._refused or self._clearing:
            return None
        why = f"it waits until {until:%Y-%m-%d %H:%M:%S} UTC"
        return Pause(max(0.0, (until - now).total_seconds()), why, until=until)

    # --- beginnings and ends ---

    async def _find_out(self, *, in_order: bool) -> None:
        """What of the lines published before us is still open; Redis is to forget the others."""
        reach = self._reach
        there = await self._batches.open_lines(self.id, to=reach.published_to)
        self._out = {line.task_id: line.number for line in there}
        self._clearing.clear()
        async for some in self._batches.published(self.id, after=reach.cleared_to, to=reach.published_to):
            over = [line for line in some if not line.is_open]
            twice = [line.task_id for line in over if line.number <= reach.disturbed_to]
            await self._blocking(self._lines.void, twice, all_of_them=False, for_s=TWO_S)
            once = [line for line in over if line.number > reach.disturbed_to]
            self._clearing.extend((self._tick(), line.task_id, line.number) for line in once)
            if self._tick() - self._beat_at >= self._paces.beat:
                await self._note([])  # or it would be taken for dead where there are very many
        if not in_order and self._out:
            told = await self._blocking(self._lines.ended, list(self._out))
            self._due = {number: one for one, number in self._out.items() if one not in told}

    def _publish_again(self) -> None:
        self._disturb(self._reach.published_to)
        self._due = {number: task_id for task_id, number in self._out.items()}

    async def _go(self, pause: Pause) -> None:
        """Say that all is in order, if it is; else the next one publishes what is open again."""
        logger.info("Batch %s: making way, %s.", self.id, pause.why)
        in_order = not (self._due or self._refused)
        if in_order or pause.until is not None:
            await self._batches.leave(
                self.id, self.name, self._reach, now=self._now(), in_order=in_order, until=pause.until
            )

    def _ends_as(self, batch: Batch) -> BatchState | None:
        """What it becomes where it is to be stopped now."""
        if batch.state is BatchState.CANCELLING:
            return BatchState.CANCELLED
        if batch.state is not BatchState.IN_PROGRESS:
            return None
        if self._deaths >= self._most_deaths:
            return BatchState.FAILED
        late = batch.expires_at is not None and self._now() >= batch.expires_at
        return BatchState.EXPIRED if late and batch.counts.open else None

    def _is_done(self, batch: Batch) -> bool:
        if batch.state is BatchState.FINALIZING:
            return True
        return (self._exhausted or not batch.counts.open) and not self._out and not self._refused

    async def _end(self, to: BatchState) -> None:
        """Stop what runs, keep what has ended, and give all other lines the same outcome."""
        outcome, why = STOPS[to]
        self._fails = to is BatchState.FAILED
        for number, task_id in [one for one in self._due.items() if one[0] > self._reach.disturbed_to]:
            if number not in self._tried:  # it never was published
                del self._out[task_id], self._due[number]
        self._due.clear()
        await self._blocking(self._lines.stop, list(self._out))
        until = self._tick() + self._paces.settles
        while self._out and self._tick() < until:
            ended = await self._look()
            await self._note([_stopped(one, outcome, why) for one in ended])
            await self._sleep(self._paces.soonest)
        self._keep(self._out.values())  # who comes after us, should we die here, clears them away
        await self._note(self._refused)
        while await self._batches.close_rest(self.id, self.name, outcome, why, now=self._now()):
            await self._sleep(0)
        batch = await self._note([])
        if to is BatchState.EXPIRED and not batch.counts.expired:  # the last line ended just then
            await self._finalize()
            return
        await self._blocking(self._lines.void, list(self._out), all_of_them=True, for_s=TWO_S)
        await self._clear_all()
        also: dict[str, Any] = {}
        if to is BatchState.FAILED:
            also["trouble"] = (
                f"{self._deaths} tries to work on it ended with the death of a worker or an error, one after "
                "another, without any progress."
            )
        await self._batches.move(self.id, to, now=self._now(), conductor=self.name, **also)
        logger.info("Batch %s: %s.", self.id, to)

    async def _finalize(self) -> None:
        """Every line has its outcome."""
        await self._batches.move(self.id, BatchState.FINALIZING, now=self._now(), conductor=self.name)
        await self._clear_all()
        await self._batches.move(self.id, BatchState.COMPLETED, now=self._now(), conductor=self.name)
        logger.info("Batch %s: completed.", self.id)

    async def _clear_all(self) -> None:
        """At once: some may not be acknowledged yet, so marks are left for them."""
        twice = [task_id for _, task_id, number in self._clearing if number <= self._reach.disturbed_to]
        once = [task_id for _, task_id, number in self._clearing if number > self._reach.disturbed_to]
        await self._blocking(self._lines.void, twice, all_of_them=False, for_s=TWO_S)
        await self._blocking(self._lines.void, once, all_of_them=False, for_s=ONE_S)
        self._clearing.clear()

    async def _blocking(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await asyncio.to_thread(call, *args, **kwargs)


def _stopped(ended: Ended, outcome: LineOutcome, why: str) -> Ended:
    """A line that was cut because the batch ends; what had finished before stays as it is."""
    if ended.outcome is not LineOutcome.CANCELLED:
        return ended
    return ended._replace(outcome=outcome, code="", why=why)
