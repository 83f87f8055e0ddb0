"""What a node shows the memory controller, and what it decides, in few words."""

from gaelp_tasks.models.invocation import Tier
from gaelp_workers import controller
from gaelp_workers.decisions import Hold, Snapshot
from gaelp_workers.eviction import Run
from gaelp_workers.ledger import Footprint, Held, Phase
from gaelp_workers.thresholds import GIB, Limits, Trend

LIMITS = Limits()
TOTAL = 32 * GIB
FOOTPRINTS = {
    "a": Footprint(2 * GIB, GIB, 2),
    "b": Footprint(6 * GIB, GIB, 1),
    "c": Footprint(8 * GIB, GIB, 4),
    "theirs": Footprint(GIB, GIB, 1),
}


def shows(free, *, resident=None, loaded=None, failed=(), running=None, waiting=None, total=TOTAL):
    """A snapshot; what is loaded is what is resident, unless told."""
    resident = resident or {}
    return Snapshot(
        total_bytes=total,
        free_bytes=int(free),
        resident=resident,
        loaded=frozenset(resident if loaded is None else loaded),
        failed=frozenset(failed),
        running=running or {},
        waiting=waiting or {},
        footprints=FOOTPRINTS,
    )


def run(number, tier=Tier.BATCH, since_s=0.0):
    return Run(f"r{number}", tier, since_s)


def holding(free, *, now=0.0, phase=Phase.LOADED, **models):
    """A controller that has loaded these models, which hold so much."""
    held = {name: Held(phase, size, 0, now, now + 600.0) for name, size in models.items()}
    trend = Trend(now, free, sum(models.values()))
    return controller.start(free, now)._replace(models=held, trend=trend)


def of_kind(decisions, kind):
    return [decision for decision in decisions if isinstance(decision, kind)]


def reasons(decisions):
    return {hold.model: hold.reason for hold in of_kind(decisions, Hold)}
