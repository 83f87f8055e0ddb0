"""Celery's beat scheduler: the static table, the app's own `beat_schedule`, and the schedules in SQL.

Any number of beats may run: one leads, and another takes over when it dies. A tick looks at the lease, at the
fixed entries, and at what SQL says is due; nothing is kept in between, so an edit counts from the next tick.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import cached_property
from time import monotonic
from typing import Any, TypeVar

from celery import beat

from gaelp_beat import fixed
from gaelp_beat.leader import Leader, Term
from gaelp_beat.previous import Previous, ResultsAway
from gaelp_beat.publishing import Deposed, Press, Run
from gaelp_beat.schedule import STATIC
from gaelp_beat.sweeper import Sweeper
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect, in_words, unavailable
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.schedules import Kept, Timetable
from gaelp_tasks.due import Drop, Fire, Hold, candidate, decide
from gaelp_tasks.errors import BrokerUnavailable, DatabaseUnavailable, InvalidInvocation
from gaelp_tasks.tasks.scheduled import is_idle, publish

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

TICK_S = 0.5  #: between two looks at the lease and at SQL
AT_ONCE = 100  #: schedules that are read in one look
REDIS_S = 1.0  #: for an answer about the lease; a host that is gone without a word costs no more
SQL_S = 2.0  #: for one look or note; what takes longer would cost the lease
RENEW_S = 0.5  #: between two renewals, also where one tick has much to do
TURNS = 1000  #: runs of fixed entries in one tick


class Scheduler(beat.Scheduler):
    """Publishes what is due while it leads; keeps no file."""

    app: GaelpApp
    max_interval = TICK_S

    def __init__(self, app: GaelpApp, *args: Any, max_interval: float | None = None, **how: Any) -> None:
        redis = connect(app.settings, answer_s=REDIS_S)
        self._leader = Leader(redis, app.keys)
        self._press = Press(redis, app.keys)
        self._previous = Previous(app, redis, answer_s=REDIS_S)
        self._redis = redis
        self._sweeper = Sweeper(app)
        self._term: Term | None = None
        self._led_at = 0.0  # `monotonic` of the last renewal
        self._loop: asyncio.Runner | None = None
        self._db: Database | None = None
        self._looked = False  # for the database
        self._in_tick = False
        self._troubles: dict[str, str] = {}  # what is amiss, by what it concerns: told once
        super().__init__(app, *args, max_interval=min(max_interval or TICK_S, TICK_S), **how)

    def setup_schedule(self) -> None:
        """Take the static table, then the app's entries, which may replace ours by name."""
        self.merge_inplace({**STATIC, **self.app.conf.beat_schedule})
        self.install_default_entries(self.schedule)
        logger.info("Schedule: %s.", ", ".join(sorted(self.schedule)))

    @cached_property
    def connection(self) -> Any:
        """Celery's connection, with our press in it."""
        return self._press.fit(self.app.connection_for_write())

    def tick(self, *_: Any, **__: Any) -> float:
        """Publish what is due, if we lead; gives the seconds until the next tick."""
        self._in_tick = True
        try:
            return self._tick()
        except (*unavailable, BrokerUnavailable) as error:
            self._term = None
            self._tell("Redis", f"does not serve us ({in_words(str(error))}); trying again")
            return TICK_S
        finally:
            self._in_tick = False

    def close(self) -> None:
        """Resign, so that another beat leads at once, and hang up.

        Celery calls this from the handler of SIGTERM, which may have interrupted a tick, and then once more.
        """
        if self._in_tick:
            return
        self._sweeper.stop()
        try:
            self._leader.resign()
        except unavailable as error:
            logger.warning("The lead was not given back (%s): it ends by itself.", error)
        if self._loop is not None:
            if self._db is not None:
                self._loop.run(self._db.close())
            self._loop.close()
            self._loop = self._db = None
        super().close()

    def _tick(self) -> float:
        if not self._looked:  # once before we lead: tables may have to be made
            self._looked = True
            self._sweeper.start()  # not with the object: Celery makes one more, only to tell of it
            self._open_sql(None)
        began = monotonic()
        if not self._leads():
            return TICK_S
        try:
            now_ms = self._now_ms()
            waits_ms = min(self._publish_fixed(now_ms) - now_ms, self._publish_kept(now_ms))
        except Deposed:
            self._term = None
            logger.warning("Another beat leads by now.")
            return TICK_S
        self._well("Redis")
        return max(0.0, min(waits_ms / 1000 - (monotonic() - began), self.max_interval))

    def _leads(self) -> bool:
        """Whether we lead, as of now."""
        before, self._term = self._term, self._leader.lead()
        self._led_at = monotonic()
        if self._term is None:
            if before is not None:
                logger.warning("Another beat leads by now.")
            return False
        if before is None or before.fence != self._term.fence:
            logger.info("This beat leads (%s, fence %d).", self._leader.name, self._term.fence)
        return True

    def _now_ms(self) -> int:
        return self._lead_on().now_ms + int((monotonic() - self._led_at) * 1000)

    def _lead_on(self) -> Term:
        """The term, renewed where that is due. Raises Deposed."""
        if monotonic() - self._led_at >= RENEW_S:
            self._leads()
        if self._term is None:
            raise Deposed
        return self._term

    def _publish_fixed(self, now_ms: int) -> int:
        """What is due of the fixed entries; gives when the next one is, in Unix ms."""
        if not self.schedule:
            return now_ms + int(TICK_S * 1000)
        names = list(self.schedule)
        found: Any = self._redis.hmget(self.app.keys.beat_published, list(map(fixed.id_of, names)))
        following = []
        for name, published in zip(names, found, strict=True):
            try:
                following.append(self._publish_entry(name, published, now_ms))
            except (Deposed, *unavailable, BrokerUnavailable):
                raise
            except Exception as error:  # noqa: BLE001  whatever one entry does, the others have their turn
                self._tell(f"Entry {name!r}", f"was not published ({type(error).__name__}: {error})")
        return min(following, default=now_ms + int(TICK_S * 1000))

    def _publish_entry(self, name: str, published: str | None, now_ms: int) -> int:
        entry = self.schedule[name]
        if published is None:  # its times count from now; another beat may say so first
            key = self.app.keys.beat_published
            self._redis.hsetnx(key, fixed.id_of(name), now_ms)
            published = str(self._redis.hget(key, fixed.id_of(name)))
        done_ms = int(published)
        for _ in range(TURNS):
            turn = fixed.turn(entry.schedule, done_ms, now_ms)
            if turn is None:
                break
            term = self._lead_on()
            task_id = fixed.run_id(name, turn.due_ms)
            one = beat.ScheduleEntry(
                name=name,
                task=entry.task,
                schedule=entry.schedule,
                args=entry.args,
                kwargs=entry.kwargs,
                options={**entry.options, "task_id": task_id},
                app=self.app,
            )
            logger.info("Entry %s is due: task %s (%s).", name, task_id, entry.task)
            with (
                self._press.printing(Run(fixed.id_of(name), turn.due_ms, turn.until_ms, term.lease)),
                self.app.unheard(),
            ):
                self._apply(one)
            if not self._press.passed:  # it went another way than through a list of ours, or nobody sent it
                self._redis.hset(self.app.keys.beat_published, fixed.id_of(name), turn.until_ms)
            done_ms = turn.until_ms
        self._well(f"Entry {name!r}")
        return fixed.next_ms(entry.schedule, done_ms)

    def _apply(self, entry: beat.ScheduleEntry) -> None:
        """Celery's apply_async, with what it went wrong by and not Celery's SchedulingError around that."""
        try:
            self.apply_async(entry, producer=self.producer, advance=False)
        except beat.SchedulingError as error:
            raise (error.__cause__ or error.__context__ or error) from None

    def _publish_kept(self, now_ms: int) -> float:
        """What is due of the schedules in SQL; gives the ms until the next one is."""
        now = datetime.fromtimestamp(now_ms / 1000, UTC)
        if not self._open_sql(SQL_S):
            return TICK_S * 1000
        try:
            due = self._ask(lambda at: at.due(now, AT_ONCE))
            moved = [self._publish_safely(kept) for kept in due.kept]
        except (DatabaseUnavailable, TimeoutError) as error:
            self._tell("SQL", _why(error))
            return TICK_S * 1000
        self._well("SQL")
        self._redis.set(self.app.keys.beat_read, now_ms)  # `gaelp metrics` tells how long ago
        for sentence in due.unread:
            logger.error("%s", sentence)
        if any(moved):
            return 0.0
        return TICK_S * 1000 if due.next_at is None else (due.next_at - now).total_seconds() * 1000

    def _publish_safely(self, kept: Kept) -> bool:
        """The same for one that may be broken: it keeps no other schedule from its turn."""
        try:
            return self._publish_one(kept)
        except (Deposed, *unavailable, BrokerUnavailable, DatabaseUnavailable, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001  a result record of another service may hold anything
            self._tell(f"Schedule {_shown(kept)}", f"cannot be decided on ({type(error).__name__}: {error})")
            return False

    def _publish_one(self, kept: Kept) -> bool:
        """Decide about one due time of a schedule, publish it, and only then write that down.

        Whoever dies in between has it published again under the same id, and the press passes it over. False
        where there is nothing more to do about it for a while.
        """
        now = datetime.fromtimestamp(self._now_ms() / 1000, UTC)
        found = candidate(kept.schedule, kept.standing, now)
        if found is None:
            return False
        decided = found if isinstance(found, Drop) else self._decide(kept, found, now)
        if isinstance(decided, Fire):
            decided = self._fire(kept, decided)
        if isinstance(decided, Drop):
            logger.info("Schedule %s: nothing due up to %s is made up for.", _shown(kept), decided.until)
        term = self._lead_on()
        noted = self._ask(lambda at: at.note(kept, decided, now, term.fence))
        if not noted:
            logger.info("Schedule %s was changed meanwhile.", _shown(kept))
        return noted and not isinstance(decided, Hold)

    def _decide(self, kept: Kept, due: datetime, now: datetime) -> Fire | Hold | Drop:
        schedule, last = kept.schedule, kept.last_task
        try:
            goes_on = last is not None and self._previous.goes_on(str(kept.id), last, schedule)
        except ResultsAway:  # nothing is decided then, and nothing left out
            return Hold(kept.standing.waiting or due)
        finally:
            if trouble := self._previous.trouble:
                self._tell("Results", f"their Redis does not answer ({trouble}); some schedules wait")
            else:
                self._well("Results")
        return decide(
            schedule,
            kept.standing,
            due,
            now,
            goes_on=goes_on,
            is_idle=not schedule.only_when_idle or is_idle(self.app, schedule.higher),
        )

    def _fire(self, kept: Kept, decided: Fire) -> Fire | Hold:
        """Publish it; what fails for reasons of its own waits, and keeps no other schedule from its turn.

        Raises Deposed, BrokerUnavailable.
        """
        task_id, concerns = kept.run_id(decided.due), f"Schedule {_shown(kept)}"
        due_ms = int(decided.due.timestamp() * 1000)
        logger.info("%s is due: task %s (%s).", concerns, task_id, kept.schedule.task)
        try:
            if decided.cancel and kept.last_task is not None:
                self.app.control.revoke(kept.last_task, terminate=True)
            with self._press.printing(Run(str(kept.id), due_ms, due_ms, self._lead_on().lease)):
                publish(
                    self.app,
                    kept.schedule,
                    kept.tenant,
                    task_id,
                    decided.due,
                    producer=self.producer,
                    headers={"celery_beat_task": True},
                )
        except InvalidInvocation as error:
            self._tell(concerns, f"the run of {decided.due} is refused for good: {error}")
            return decided
        except (Deposed, *unavailable, BrokerUnavailable):
            raise
        except Exception as error:  # noqa: BLE001  kombu and Celery raise whatever they stumble over
            self._tell(concerns, f"was not published ({type(error).__name__}: {error})")
            return Hold(kept.standing.waiting or decided.due)
        self._well(concerns)
        return decided

    def _ask(self, ask: Callable[[Timetable], Coroutine[Any, Any, T]]) -> T:
        """One question to SQL. Raises DatabaseUnavailable, TimeoutError."""
        assert self._loop is not None  # noqa: S101  _open_sql comes first
        assert self._db is not None  # noqa: S101
        return self._loop.run(_within(SQL_S, ask(Timetable(self._db))))

    def _open_sql(self, most_s: float | None) -> bool:
        """Whether there is a database with our tables; looks for `most_s`, None: as long as it takes."""
        if self._db is not None:
            return True
        if self._loop is None:
            self._loop = asyncio.Runner()
        db = Database(self.app.settings.sql_url, answer_s=SQL_S)
        try:
            self._loop.run(_within(most_s, db.migrate()))
        except (DatabaseUnavailable, TimeoutError) as error:
            self._loop.run(db.close())
            self._tell("SQL", _why(error))
            return False
        self._db = db
        return True

    def _tell(self, concerns: str, trouble: str) -> None:
        """Say what is amiss, once for as long as it is."""
        if self._troubles.get(concerns) != trouble:
            self._troubles[concerns] = trouble
            logger.warning("%s: %s.", concerns, trouble.rstrip("."))

    def _well(self, concerns: str) -> None:
        if self._troubles.pop(concerns, None):
            logger.info("%s: well again.", concerns)


async def _within(most_s: float | None, work: Coroutine[Any, Any, T]) -> T:
    """Raises TimeoutError."""
    async with asyncio.timeout(most_s):
        return await work


def _why(error: Exception) -> str:
    return f"schedules wait: {str(error) or f'no answer within {SQL_S:g} s'}"


def _shown(kept: Kept) -> str:
    whose = f" of {kept.tenant!r}" if kept.tenant else ""
    return f"{kept.schedule.name!r}{whose}"
