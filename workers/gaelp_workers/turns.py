"""The trickle: when a lower tier goes before the higher ones, so that none of them waits for ever. Pure.

Where a model has at least two slots, a tier that waits while others are served gets one start in `EACH`. What
has waited its maximum gets its turn at once, whatever the slots; the next one of that tier after as many
others. Runs that came by a turn are not preempted, and at most one slot in `EACH`, but one in any case, is
theirs at a time: the higher tiers keep the rest.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import tier_of
from gaelp_workers.dispatch import OTHERS, Held, Kind, pool_of

__all__ = ["EACH", "Turns", "Waiting"]

#: At one in four, two slots that interactive calls keep busy would serve them noticeably later; at one in
#: sixteen the lower tiers of a small node would hardly move.
EACH = 8


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in a queue, as of the last look."""

    count: int
    oldest_published_at: float | None  #: Unix seconds, or when it was due if later; None: not told
    first_seen_at: float  #: Unix seconds when this worker first saw it next in its list
    oldest: str  #: the list of the queue where it is, one for each step of priority

    @property
    def since_s(self) -> float:
        """Unix time since when the oldest waits, as far as it is known."""
        return self.first_seen_at if self.oldest_published_at is None else self.oldest_published_at


class Turns:
    """Counts who was passed over; `max_wait_s` 0 is no maximum."""

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._passed: dict[tuple[str, Tier], int] = {}  # starts of others since its last, while it waited
        #: starts in the pool since the last turn of a tier
        self._since: defaultdict[tuple[str, Tier], float] = defaultdict(lambda: inf)
        self._waiting: dict[str, set[Tier]] = {}  # as of the last claim, by pool

    def due(
        self,
        waiting: Mapping[str, Waiting],
        models: Mapping[str, str],
        slots: Mapping[str, int],
        held: Iterable[Held],
        now_s: float,
    ) -> list[str]:
        """Lists and queues of which one message each goes first, of each pool one at most.

        `slots` are those of each model, `now_s` is Unix time.
        """
        if not waiting:
            self._waiting, self._passed = {}, {}
            return []
        by_pool: dict[str, dict[Tier, tuple[float, str, Waiting]]] = {}  # of each tier what waits longest
        for queue, found in waiting.items():
            pool, tier = pool_of(queue, models), tier_of(queue)
            if pool != OTHERS and tier is not None:
                tiers = by_pool.setdefault(pool, {})
                tiers[tier] = min(tiers.get(tier, (inf, "", found)), (found.since_s, queue, found))
        self._waiting = {pool: set(tiers) for pool, tiers in by_pool.items()}
        spared: defaultdict[str, int] = defaultdict(int)
        for task in held:
            spared[models.get(task.model, OTHERS)] += task.turn
        first = []
        for pool, tiers in by_pool.items():
            count = slots.get(pool, 0)
            if spared[pool] < max(1, count // EACH):
                turns = (self._turn(pool, tier, oldest, count, now_s) for tier, oldest in tiers.items())
                lowest = max(filter(None, turns), default=None)
                if lowest is not None:
                    first.append(lowest[1])
        return first

    def _turn(
        self, pool: str, tier: Tier, oldest: tuple[float, str, Waiting], slots: int, now_s: float
    ) -> tuple[int, str] | None:
        """The rank of the tier and what goes first, where it is its turn."""
        since_s, queue, found = oldest
        if self._max_wait_s and now_s - since_s >= self._max_wait_s and self._since[pool, tier] >= EACH - 1:
            return tier.rank, found.oldest
        if slots > 1 and self._passed.get((pool, tier), 0) >= EACH - 1:
            return tier.rank, queue
        return None

    def took(self, task: Held, models: Mapping[str, str]) -> None:
        """A claim has brought this."""
        pool, tier = models.get(task.model, OTHERS), task.tier
        if pool == OTHERS or tier is None or task.kind is not Kind.SLOT:
            return
        for other in Tier:
            self._since[pool, other] += 1
            if other in self._waiting.get(pool, ()):
                self._passed[pool, other] = self._passed.get((pool, other), 0) + 1
        self._passed[pool, tier] = 0
        if task.turn:
            self._since[pool, tier] = 0
