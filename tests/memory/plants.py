"""Planted bugs: each a small change to the real code that the judge must see in some trace or hour."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple
from unittest.mock import patch

from gaelp_workers import admission, controller, eviction, ledger, thresholds
from gaelp_workers.decisions import Snapshot, State
from gaelp_workers.thresholds import Limits
from memory.three import Scene
from memory.traces import Trace, restless, trace


def no_ledger() -> AbstractContextManager[object]:
    """What loads are still to take is not counted."""
    return patch.object(ledger, "still_to_come", lambda models, resident: 0)


def trusted_estimates() -> AbstractContextManager[object]:
    """What was estimated is believed, without a factor and for ever."""
    return patch.object(ledger, "need_bytes", lambda footprint, measured, factor: footprint.total_bytes)


@contextmanager
def no_hysteresis() -> Iterator[None]:
    """Memory that came back is counted on at once, and a threshold is left where it was entered."""
    with (
        patch.object(thresholds, "believed", lambda before, free, passed_s, smooth_s: free),
        patch.object(Limits, "relief", lambda self, total_bytes: 0),
    ):
        yield


def reversed_victims() -> AbstractContextManager[object]:
    """The highest tier gives way first."""
    real = eviction.victims

    def reverse(models, running, short_bytes, now):
        costs = (
            eviction.sacrifice(model, held, running.get(model, ()), now) for model, held in models.items()
        )
        in_order = [cost.model for cost in sorted(costs, reverse=True)]
        return in_order[: len(real(models, running, short_bytes, now))]

    return patch.object(controller, "victims", reverse)


def half_asleep() -> AbstractContextManager[object]:
    """It looks every second, whatever happens."""
    return patch.object(thresholds, "poll_s", lambda free, total, limits: 1.0)


@contextmanager
def others_are_ours() -> Iterator[None]:
    """Models of others count as ours."""
    real = controller._noted

    def adopts(state: State, seen: Snapshot, now: float, limits: Limits) -> State:
        held = {
            name: ledger.Held(ledger.Phase.LOADED, seen.resident[name], 0, 0.0, 0.0)
            for name in seen.loaded
            if name not in state.models
        }
        return real(state._replace(models={**state.models, **held}), seen, now, limits)

    with patch.object(controller, "_noted", adopts):
        yield


def slots_without_number() -> AbstractContextManager[object]:
    """A loaded model takes all that waits."""
    real = admission.Round._admit

    def admits(self: admission.Round, model: str) -> None:
        self.busy[model] = 0
        real(self, model)

    return patch.object(admission.Round, "_admit", admits)


def busy_for_ever() -> AbstractContextManager[object]:
    """Only what is idle gives way; nothing bounds how long a swap is put off."""
    real = admission.Round._gives_way

    def gives_way(
        self: admission.Round, name: str, held: ledger.Held, wish: admission.Wish, *, overdue: bool
    ) -> bool:
        return not self.busy.get(name) and real(self, name, held, wish, overdue=overdue)

    return patch.object(admission.Round, "_gives_way", gives_way)


def swaps_at_once() -> AbstractContextManager[object]:
    """Whatever waits gets its room at once."""
    return patch.object(admission.Round, "_gives_way", lambda self, name, held, wish, *, overdue: True)


@contextmanager
def drains_are_forgotten() -> Iterator[None]:
    """A model that gives way goes on taking new runs: two wait for each other, as servers were seen to do."""
    real = admission.Round.__init__

    def begins(self: admission.Round, state: State, seen: Snapshot, now: float, limits: Limits) -> None:
        loaded = {
            name: held._replace(phase=ledger.Phase.LOADED) if held.phase is ledger.Phase.DRAINING else held
            for name, held in state.models.items()
        }
        real(self, state._replace(models=loaded), seen, now, limits)

    with patch.object(admission.Round, "__init__", begins):
        yield


def ageless() -> AbstractContextManager[object]:
    """However long a run waits, higher tiers go first."""
    real = admission.Round._wish

    def wish(self: admission.Round, model: str, runs: Sequence[eviction.Run]) -> admission.Wish:
        self.limits = self.limits._replace(most_wait_s=float("inf"))
        return real(self, model, runs)

    return patch.object(admission.Round, "_wish", wish)


def last_first() -> AbstractContextManager[object]:
    """Of what waits, the model that came last gets its room first."""
    real = admission.Round._see_to

    def see_to(self: admission.Round, wishes: Sequence[admission.Wish]) -> None:
        real(self, sorted(wishes, key=lambda wish: (wish.rank, -wish.since_s)))

    return patch.object(admission.Round, "_see_to", see_to)


def reaches_for_the_moon() -> AbstractContextManager[object]:
    """Models are drained for one that does not fit though all of them were unloaded."""
    return patch.object(admission.Round, "_reach", lambda self, rank: 1 << 60)


class Plant(NamedTuple):
    """A bug, and the traces of which one must show it."""

    bug: Callable[[], AbstractContextManager[object]]
    traces: Callable[[int], Trace] = trace


PLANTS = {
    "no ledger": Plant(no_ledger),
    "trusted estimates": Plant(trusted_estimates),
    "no hysteresis": Plant(no_hysteresis, restless),
    "victims in the reverse order": Plant(reversed_victims),
    "half asleep": Plant(half_asleep),
    "models of others count as ours": Plant(others_are_ours),
    "slots without number": Plant(slots_without_number),
}

#: and where three models do not fit together: the hours of which one must show it
SWAPS: dict[str, tuple[Callable[[], AbstractContextManager[object]], Scene]] = {
    "busy for ever": (busy_for_ever, Scene.ENDLESS),
    "swaps at once": (swaps_at_once, Scene.SAME),
    "drains are forgotten": (drains_are_forgotten, Scene.ENDLESS),
    "ageless": (ageless, Scene.ENDLESS),
    "last come first": (last_first, Scene.SAME),
}
