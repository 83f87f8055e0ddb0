"""Which models give way, by one named sort key. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from gaelp_tasks.models.invocation import Tier

__all__ = ["RANKS", "Run", "Sacrifice", "sacrifice", "unused", "victims"]

RANKS = {tier: rank for rank, tier in enumerate(Tier)}  #: 0 is the highest tier
NOBODYS = len(RANKS)  #: of a model on which nothing runs


class Run(NamedTuple):
    """One invocation, waiting or running."""

    id: str
    tier: Tier
    since_s: float  #: when it began to wait, or to run


class Sacrifice(NamedTuple):
    """What unloading a model costs, in the order in which models give way: the smallest first."""

    order: int  #: the lower its highest running tier, the sooner; idle models first of all
    lost_s: float  #: of work, all its runs together
    freed: int  #: minus the bytes it holds: most bytes first
    model: str


def sacrifice(model: str, held_bytes: int, runs: Iterable[Run], now: float) -> Sacrifice:
    """What unloading this model costs."""
    highest, lost_s = NOBODYS, 0.0
    for run in runs:
        highest = min(highest, RANKS[run.tier])
        lost_s += now - run.since_s
    return Sacrifice(-highest, lost_s, -held_bytes, model)


def victims(
    models: Mapping[str, int], running: Mapping[str, Sequence[Run]], short_bytes: int, now: float
) -> list[str]:
    """Those that give way until `short_bytes` come back, or all of them; `models` tells what each holds."""
    chosen: list[str] = []
    for cost in sorted(sacrifice(model, held, running.get(model, ()), now) for model, held in models.items()):
        if short_bytes <= 0:
            break
        chosen.append(cost.model)
        short_bytes += cost.freed
    return chosen


def unused(idle: Mapping[str, int], served: Mapping[str, float], short_bytes: int) -> list[str]:
    """Idle models that give way until `short_bytes` come back: the longest unused first, none in vain."""
    chosen: list[str] = []
    for model in sorted(idle, key=lambda name: (served.get(name, -inf), -idle[name], name)):
        if short_bytes <= 0:
            break
        chosen.append(model)
        short_bytes -= idle[model]
    for model in tuple(chosen):
        if short_bytes + idle[model] <= 0:
            chosen.remove(model)
            short_bytes += idle[model]
    return chosen
