"""Whether the run before is over, for the policy about runs that overlap.

Its result record and the keys by its id tell of one that has ended, is held or is parked. Any other waits in
a queue, or is gone, which only the queues know: they are searched inside Redis. One that was found there is
believed to wait until its claim number says that somebody has taken it.
"""

import json
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

from celery.states import READY_STATES

from gaelp_beat.leader import script
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import SyncRedis, connect, in_words, unavailable
from gaelp_tasks.models.schedule import Schedule
from gaelp_tasks.queues import SYSTEM, lists, route, tier_of

__all__ = ["Previous", "ResultsAway", "queues_of"]

OURS = "gaelp."  #: so begin the names of tasks that go to the queue of maintenance where none is named
AT_ONCE = 100  #: messages that a search reads at a time
BYTES = 4 * 1024**2  #: of them after which Redis sees to others first
BELIEVED_S = 60.0  #: a message that was seen in a queue; somebody may have purged it
AWAY_S = 5.0  #: a Redis of results that did not answer is not asked again for so long


class ResultsAway(Exception):
    """Results are in a Redis of their own, which does not answer."""


class Seen(NamedTuple):
    """What was found out of a run the last time."""

    task_id: str
    claims: int  #: how often it had been taken
    until_s: float  #: it is believed to wait until then, `tick`
    is_over: bool


class Previous:
    """The runs before, of every schedule. `redis` is the broker, and says how long an answer may take."""

    def __init__(
        self, app: GaelpApp, redis: SyncRedis, *, answer_s: float, tick: Callable[[], float] = monotonic
    ) -> None:
        self._app, self._redis, self._tick = app, redis, tick
        self._search: Any = redis.register_script(script("search"))
        settings = app.settings
        self._apart = settings.results_url != settings.broker_url
        there = settings.model_copy(update={"broker_url": settings.results_url})
        self._results = connect(there, answer_s=answer_s) if self._apart else redis
        self._away_until = float("-inf")
        self.trouble = ""  #: of the Redis of results, '' where it answers
        self._seen: dict[str, Seen] = {}  # by schedule

    def goes_on(self, schedule_id: str, task_id: str, schedule: Schedule) -> bool:
        """Whether a schedule's run is queued, waits for its time or runs.

        Of one on a queue that is not ours only its result record tells, from its start on. Raises
        ResultsAway, and what redis-py raises.
        """
        seen = self._seen.get(schedule_id)
        if seen is not None and seen.task_id == task_id and seen.is_over:
            return False
        status = self._status(task_id)
        queues = queues_of(schedule, self._known())
        if status in READY_STATES:
            goes_on = False
        elif self._is_taken(task_id):
            return True
        elif queues:
            goes_on = self._waits(schedule_id, task_id, queues)
        elif status is None:
            raise ResultsAway
        else:
            return bool(status)
        if not goes_on:
            self._seen[schedule_id] = Seen(task_id, 0, 0.0, is_over=True)
        return goes_on

    def _status(self, task_id: str) -> str | None:
        """Of its result record; '' where there is none that can be read, None where nobody can tell."""
        if self._tick() < self._away_until:
            return None
        key: Any = self._app.backend.get_key_for_task(task_id)
        try:
            text: Any = self._results.get(key)
        except unavailable as error:
            if not self._apart:
                raise
            self._away_until, self.trouble = self._tick() + AWAY_S, in_words(str(error))
            return None
        self.trouble = ""
        try:
            told = json.loads(text or "{}")
        except (ValueError, RecursionError):
            return ""
        status = told.get("status") if isinstance(told, dict) else None
        return status if isinstance(status, str) else ""

    def _is_taken(self, task_id: str) -> bool:
        """Whether a worker holds it, or it is parked."""
        keys = self._app.keys
        tag: Any = self._redis.get(keys.holder(task_id))
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zscore(keys.leases, tag or "")
            pipe.zscore(keys.parked, task_id)
            return any(due is not None for due in pipe.execute())

    def _known(self) -> set[str]:
        known: Any = self._redis.smembers(self._app.keys.queues)
        return set(known)

    def _waits(self, schedule_id: str, task_id: str, queues: list[str]) -> bool:
        """Whether its message is in one of these queues, or waits to run alone."""
        count: Any = self._redis.get(self._app.keys.claims(task_id))
        claims = int(count or 0)
        seen = self._seen.get(schedule_id)
        if seen is not None and seen[:2] == (task_id, claims) and self._tick() < seen.until_s:
            return True
        names = [self._app.keys.queue(name) for queue in queues for name in lists(queue)]
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.llen(name)
            depths = pipe.execute()
        there = [name for name, depth in zip(names, depths, strict=True) if depth]
        if any(self._is_in(name, task_id) for name in (self._app.keys.suspects, *there)):
            self._seen[schedule_id] = Seen(task_id, claims, self._tick() + BELIEVED_S, is_over=False)
            return True
        return self._is_taken(task_id)  # while we looked

    def _is_in(self, name: str, task_id: str) -> bool:
        mark, at = f'"id": {json.dumps(task_id)}', 0  # as kombu writes it
        while at >= 0:
            at = int(self._search(keys=[name], args=[mark, at, AT_ONCE, BYTES]))
        return at == -1


def queues_of(schedule: Schedule, known: set[str]) -> list[str]:
    """Where runs of a schedule may wait, of the queues that workers of ours take from; the inbox first.

    `known` are the queues of models that may hold something.
    """
    tier = schedule.counts_as
    if tier is not None:
        of_tier = {name for name in known if tier_of(name) is tier}
        return [tier.value, *sorted(of_tier | {route(tier), route(tier, embeds=True)})]
    is_system = schedule.queue == SYSTEM or (schedule.queue is None and schedule.task.startswith(OURS))
    return [SYSTEM] if is_system else []
