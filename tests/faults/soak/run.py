"""One soak: load, strike, drain, write down what happened."""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count, takewhile
from pathlib import Path
from random import Random

from faults.history.model_server import prompt
from faults.history.observer import Observer
from faults.history.record import Acceptance, History
from faults.history.run import buried, left
from faults.history.subjects import answer_of
from faults.soak.batches import Batches
from faults.soak.clients import PACE_S, Clients
from faults.soak.cluster import Soaked, soaked
from faults.soak.faults import strike
from faults.soak.plan import Plan, strikes
from faults.soak.record import Soak, Struck
from faults.soak.watch import Watch
from gaelp_tasks import app
from gaelp_tasks.connections import unavailable
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.schedules import Kept, Schedules
from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.models.schedule import Schedule

__all__ = ["run"]

TURN_S = 0.5
DRAIN_S = 180.0  #: after the load all is over within this, or it is lost
SETTLED_S = 3.0  #: longer than a run takes, a zombie's too
TELL_S = 60.0
TICK_S = 1.0  #: longer than a beat in the midst of a tick takes to publish what was due
NAME = "soak"  #: of the schedule, and its runs in the journal


def run(plan: Plan, folder: Path, tell: Callable[[str], object]) -> Soak:
    """Do it, on an empty Redis and an empty database; logs are left in `folder`.

    Ctrl-C ends the load early: what was asked for until then is drained and judged.
    """
    began = time.monotonic()
    with soaked(plan, folder) as cluster, ExitStack() as stack:
        kept = asyncio.run(keep(cluster.database.url, plan))
        at_work = _Run(plan, cluster, kept, tell, stack)
        interrupted = False
        try:
            at_work.load()
        except KeyboardInterrupt:
            interrupted = True
            tell("It ends early: what was asked for is drained. Ctrl-C again leaves at once.")
        at_work.drain()
        return at_work.soak(interrupted=interrupted, took_s=time.monotonic() - began)


async def keep(url: str, plan: Plan) -> Kept:
    """The schedule: every run is wanted, however late."""
    db = Database(url)
    asked = {
        "name": NAME,
        "interval_s": plan.schedule_s,
        "kwargs": {"prompt": prompt(NAME, 4, PACE_S)},
        "tier": "batch",
        "missed": "all",
        "overlap": "queue",
    }
    kept = await Schedules(db, "").add(Schedule.parse(asked), datetime.now(UTC))
    await db.close()
    return kept


async def pause(url: str) -> None:
    """Have nothing more of the schedule published."""
    db = Database(url)
    await Schedules(db, "").pause(NAME, datetime.now(UTC), paused=True)
    await db.close()


def due_until(kept: Kept, plan: Plan, until: float) -> dict[str, float]:
    """Its runs that were due by then, in Unix seconds: task id -> seconds after the first."""
    first = kept.next_due
    assert first is not None
    after = takewhile(
        lambda after_s: first.timestamp() + after_s <= until, (n * plan.schedule_s for n in count())
    )
    return {kept.run_id(first + timedelta(seconds=after_s)): after_s for after_s in after}


class _Run:
    def __init__(
        self, plan: Plan, cluster: Soaked, kept: Kept, tell: Callable[[str], object], stack: ExitStack
    ) -> None:
        self.plan, self.cluster, self.kept, self.tell = plan, cluster, kept, tell
        self.struck: list[Struck] = []
        self.troubles: list[str] = []
        self.due: dict[str, float] = {}
        self.paused = False  # the schedule
        self.heard = 0  # answers that the watch has been told of
        self.told_at = time.monotonic()
        self.observer = stack.enter_context(Observer(cluster.server))
        self.batches = stack.enter_context(Batches(plan, cluster.database.url))
        self.watch = stack.enter_context(
            Watch(cluster, self.asked, every_s=plan.sample_s, late_s=plan.kept_s / 5)
        )
        self.clients = stack.enter_context(Clients(plan))

    def asked(self) -> set[str]:
        """Ids of which there must be an answer some time."""
        return {*tuple(self.clients.acknowledged), *tuple(self.due)}

    def load(self) -> None:
        rng, began = Random(self.plan.seed), time.monotonic()
        for due in strikes(self.plan):
            self.work(until=began + due.at_s)
            at = time.monotonic()
            try:
                whom, took_s = strike(due.fault, self.cluster, rng)
            except Exception as error:  # noqa: BLE001  hours are not thrown away for one: it is told
                self.troubles.append(f"{due.fault}: {type(error).__name__}: {error}")
                self.tell(self.troubles[-1])
                continue
            self.struck.append(Struck(due.fault, whom, at, took_s))
            self.tell(f"{at - began:.0f} s: {due.fault}, {whom}")
        self.work(until=began + self.plan.seconds)

    def work(self, *, until: float) -> None:
        """Let them work, and see to it."""
        while (left_s := until - time.monotonic()) > 0:
            self.cluster.pause(min(TURN_S, left_s))
            self.look()

    def look(self) -> None:
        if not self.paused:
            self.due.update(due_until(self.kept, self.plan, time.time()))
        news = self.observer.heard[self.heard :]
        self.heard += len(news)
        self.watch.heard(news)
        if time.monotonic() - self.told_at > TELL_S:
            self.told_at = time.monotonic()
            failed = sum(bool(one.error) for one in (*self.clients.tries, *self.batches.tries))
            self.tell(
                f"{self.clients.asked} asked, {len(self.watch.missing)} without an answer, "
                f"{failed} tries failed"
            )

    def drain(self) -> None:
        """Ask for nothing more, and wait until all of it is over, within bounds."""
        self.clients.rest()
        self.batches.rest()
        give_up_at = time.monotonic() + DRAIN_S
        while time.monotonic() < give_up_at:
            if not self.paused:
                self.pause()
            self.work(until=time.monotonic() + TURN_S)
            over = self.clients.idle and self.batches.idle and not self.cluster.under_way
            if self.paused and over and not self.watch.missing:
                break
        self.work(until=time.monotonic() + SETTLED_S)
        if not self.watch.alive:
            self.troubles.append("the watch has ended before its time")
        self.watch.rest()
        with closing(self.cluster.server.client()) as store:
            self.watch.read(store, everything=True)

    def pause(self) -> None:
        """Have beat publish nothing more, once it has published all that was due until now."""
        with suppress(DatabaseUnavailable, *unavailable):
            first = (self.kept.next_due or datetime.now(UTC)).timestamp()
            if self.published() < first + max(self.due.values(), default=-self.plan.schedule_s):
                return
            asyncio.run(pause(self.cluster.database.url))
            self.cluster.pause(TICK_S)
            self.due = due_until(self.kept, self.plan, self.published())
            self.paused = True

    def published(self) -> float:
        """Up to when beat has published the runs of the schedule, Unix seconds."""
        told_ms = app.redis.hget(app.keys.beat_published, str(self.kept.id)) or 0
        return (int(told_ms) + 1) / 1000  # it counts whole milliseconds

    def soak(self, *, interrupted: bool, took_s: float) -> Soak:
        try:
            ids = self.batches.ids()
        except DatabaseUnavailable as error:
            self.troubles.append(str(error))
            ids = {}
        lines = {
            ids[name]: one.accepted
            for one in self.batches.sent
            for name in one.names(self.plan.batch_lines)
            if name in ids
        }
        with closing(self.cluster.server.client()) as store:
            history = History(
                acknowledged=self.clients.acknowledged
                | dict.fromkeys(self.due, 0.0)
                | {one: 0.0 for one, accepted in lines.items() if accepted},
                doubtful=frozenset(self.clients.doubtful)
                | {one for one, accepted in lines.items() if not accepted},
                starts=tuple(
                    replace(start, id=ids.get(start.id, start.id))
                    for start in self.cluster.starts
                    if start.id != NAME
                ),
                acceptances=(*self.observer.heard, *self.watch.found, *self.of_lines(ids)),
                outages=tuple(self.cluster.outages),
                stops=tuple(self.cluster.stops),
                left=frozenset(left(store)),
                buried=buried(store),
                quit=tuple(self.cluster.quit),
            )
        return Soak(
            history=history,
            tries=[*self.clients.tries, *self.batches.tries],
            struck=self.struck,
            troubles=self.troubles,
            due=self.due,
            batches=self.batches.ends,
            samples=self.watch.samples,
            database=self.cluster.database.kind,
            interrupted=interrupted,
            took_s=took_s,
            facts={
                "looks": self.watch.looks,
                "pages of `gaelp metrics` that did not come": self.watch.missed_scrapes,
            },
        )

    def of_lines(self, ids: dict[str, str]) -> list[Acceptance]:
        """What the files of the batches tell: Redis is asked to forget their records soon."""
        names = {one.number: one.names(self.plan.batch_lines) for one in self.batches.sent}
        return [
            Acceptance(ids[names[batch][line]], answer_of(text), time.monotonic())
            for (batch, line), text in self.batches.results.items()
            if names[batch][line] in ids
        ]
