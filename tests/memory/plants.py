"""Planted bugs: each a small change to the real code that the judge must see in some trace."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple
from unittest.mock import patch

from gaelp_workers import admission, controller, eviction, ledger, thresholds
from gaelp_workers.decisions import Snapshot, State
from gaelp_workers.thresholds import Limits
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
