"""Which runs make way for a higher tier: to it, slots that they hold count as free. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping

from gaelp_tasks.models.invocation import Tier
from gaelp_workers.dispatch import INVOKES, OTHERS, Capacity, Held, Kind

__all__ = ["PREEMPTED_AT_MOST", "beyond", "may_go", "victims"]

PREEMPTED_AT_MOST = 3  #: times that one run is preempted; then it keeps its slot


def may_go(task: Held) -> bool:
    """Whether it may be stopped for a higher tier at all."""
    return (
        task.task == INVOKES
        and task.kind is Kind.SLOT
        and task.tier is not None
        and not (task.alone or task.turn)
        and task.preempted < PREEMPTED_AT_MOST
    )


def beyond(begun: Collection[Held], models: Mapping[str, str]) -> dict[tuple[str, Tier], int]:
    """How many slots beyond the free ones a tier may take, by pool; `begun` are those that run and stay."""
    found: Counter[tuple[str, Tier]] = Counter()
    for task in begun:
        pool = models.get(task.model, OTHERS)
        if pool != OTHERS and task.tier is not None and may_go(task):
            found.update((pool, tier) for tier in Tier if tier.rank < task.tier.rank)
    return dict(found)


def victims(
    held: Mapping[str, Held],
    begun: Collection[str],
    pushing: Collection[str],
    capacity: Capacity,
    writing: Collection[str] = (),
) -> list[str]:
    """Tags of those that make way for `pushing`, which were taken beyond the free slots: one for each.

    `held` are all that stay, `begun` those of them that run, `writing` the ids of runs whose model has begun
    to answer: one that still reads its prompt leaves its slot late, and would have to read all of it again.
    Of the lowest tier such a one goes first; then who had to go least often, or one run would use up its
    patience while others never go; then the newest. Never one of the same tier. Where somebody has left
    since the claim was sent, there is a slot without that.
    """
    models = capacity.models
    pools = {tag: models.get(task.model, OTHERS) for tag, task in held.items() if task.kind is Kind.SLOT}
    taken = Counter(pools.values())
    going: list[str] = []
    for pusher in pushing:
        pool, tier = pools[pusher], held[pusher].tier
        if pool == OTHERS or tier is None or taken[pool] <= capacity.slots.get(pool, 0):
            continue
        lower = [
            (other.rank, held[tag].id in writing, -held[tag].preempted, held[tag].since_s, tag)
            for tag in begun
            if pools.get(tag) == pool and tag not in going and may_go(held[tag])
            if (other := held[tag].tier) is not None and other.rank > tier.rank
        ]
        if lower:
            going.append(max(lower)[-1])
            taken[pool] -= 1
    return going
