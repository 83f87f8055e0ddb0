"""What the controller is shown of a node, put together from what was asked and heard. Pure."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gaelp_tasks.models.capacity import MemorySnapshot, Resident
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.tasks.demand import Need
from gaelp_workers.decisions import Snapshot
from gaelp_workers.eviction import Run
from gaelp_workers.ledger import Footprint

__all__ = ["ENDLESS", "Queued", "held_bytes", "less", "snapshot"]

#: the memory of a node of which nothing here tells: it is trusted to its server
ENDLESS = MemorySnapshot(total_bytes=1 << 60, free_bytes=1 << 60, source="unknown")
MOST_SHOWN = 8  #: of a queue; more of the same change no decision


class Queued(NamedTuple):
    """What waits in one queue for a model of this node."""

    model: str
    tier: Tier
    size: int
    since_s: float  #: `tick` since when the oldest waits


def less(memory: MemorySnapshot, to_come_bytes: int) -> MemorySnapshot:
    """Without what loads of other nodes will take: nodes of one machine share all but their budgets."""
    if memory.source == "budget" or not to_come_bytes:
        return memory
    return memory.model_copy(update={"free_bytes": max(0, memory.free_bytes - to_come_bytes)})


def held_bytes(model: Resident, source: str) -> int:
    """What a model takes of the pool that this source tells of."""
    return model.vram_bytes if source == "gpu" else model.size_bytes


def snapshot(
    memory: MemorySnapshot,
    resident: Mapping[str, int],
    *,
    loaded: Iterable[str],
    failed: Iterable[str],
    needs: Iterable[Need],
    queued: Iterable[Queued],
    footprints: Mapping[str, Footprint],
) -> Snapshot:
    """One moment; `loaded` are those listed, and those whose load has just ended well."""
    running: dict[str, list[Run]] = {}
    waiting: dict[str, list[Run]] = {}
    for name, asked in needs:
        place = running if asked.runs else waiting
        place.setdefault(asked.model, []).append(Run(name, asked.tier, asked.since))
    for one in queued:
        shown = [
            Run(f"{one.tier}.{one.model}", one.tier, one.since_s) for _ in range(min(one.size, MOST_SHOWN))
        ]
        waiting.setdefault(one.model, []).extend(shown)
    for runs in waiting.values():
        runs.sort(key=lambda run: (run.tier.rank, run.since_s))
    return Snapshot(
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
        resident=resident,
        loaded=frozenset(loaded),
        failed=frozenset(failed),
        running=running,
        waiting=waiting,
        footprints=footprints,
    )
