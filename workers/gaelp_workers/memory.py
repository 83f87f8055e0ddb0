"""The only door to psutil: how much memory the node has and how much of it is free."""

import psutil

from gaelp_tasks.models.capacity import MemorySnapshot

__all__ = ["host_memory"]


def host_memory() -> MemorySnapshot:
    """Memory of the host; inside a container this is still the host's, not the container's."""
    memory = psutil.virtual_memory()
    return MemorySnapshot(total_bytes=memory.total, free_bytes=memory.available, source="host")
