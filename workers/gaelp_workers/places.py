"""What this worker has for training jobs: places, and of the machine what the settings leave to jobs."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gaelp_tasks.errors import SettingsError
from gaelp_tasks.models.capacity import MemorySnapshot
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.settings import Settings
from gaelp_tasks.training.folders import root
from gaelp_tasks.training.places import Places
from gaelp_workers.memory import smallest
from gaelp_workers.probes.cgroups import V1, V2, Cgroup
from gaelp_workers.probes.host import host_memory

__all__ = ["cores", "places_of"]

ANY = 2**62  #: of what nothing tells: as much as is asked for


class Disk(NamedTuple):
    """Where jobs have their folders, in bytes."""

    total: int
    free: int


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places_of(settings: Settings) -> Places:
    """The places of a worker with these settings; none where there is no folder for jobs."""
    count = cores() if settings.training_places is None else settings.training_places
    with suppress(SettingsError):
        folder = root(settings)
        memory = _memory()
        reserve_bytes = int(settings.os_reserve)
        total = Resources(
            cpu_milli=int((settings.training_cpus or cores()) * 1000),
            memory_bytes=int(settings.training_memory) or max(0, memory.total_bytes - reserve_bytes),
            gpus=settings.training_gpus,
            storage_bytes=_disk(folder).total,
        )
        return Places(count, total, partial(_seen, folder, reserve_bytes))
    return Places()


def _seen(folder: Path, reserve_bytes: int) -> Resources:
    """What the machine has free right now; only memory and disks are everybody's."""
    left_bytes = max(0, _memory().free_bytes - reserve_bytes)
    return Resources(cpu_milli=ANY, memory_bytes=left_bytes, gpus=ANY, storage_bytes=_disk(folder).free)


def _disk(folder: Path) -> Disk:
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), Path("/"))
    try:
        found = shutil.disk_usage(there)
    except OSError:
        return Disk(ANY, ANY)
    return Disk(found.total, found.free)


def _memory() -> MemorySnapshot:
    host = host_memory()
    told = [host]
    probes: list[Callable[[], MemorySnapshot | None]] = [
        Cgroup(layout, most_bytes=host.total_bytes) for layout in (V2, V1)
    ]
    for probe in probes:
        with suppress(OSError, ValueError):
            if (found := probe()) is not None:
                told.append(found)
    return smallest(told) or host
