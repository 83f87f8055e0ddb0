"""The only door to NVML: memory of all NVIDIA GPUs of this machine together."""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from gaelp_tasks.models.capacity import MemorySnapshot

__all__ = ["Gpus"]

logger = logging.getLogger(__name__)


def library() -> Any:
    """NVML's Python names. Raises ImportError without the extra."""
    return import_module("pynvml")


class Gpus:
    """The probe of GPUs: their sum, for a server splits a model over them; None where there are none.

    Library and driver are asked for once: without them a later poll costs nothing, and a driver that is
    installed later is seen by the worker's next start.
    """

    def __init__(
        self, load: Callable[[], Any] = library, *, driver: Path = Path("/proc/driver/nvidia/version")
    ) -> None:
        self._load = load
        self._driver = driver
        self._nvml: Any = None
        self._handles: list[Any] | None = None

    def __call__(self) -> MemorySnapshot | None:
        """Memory of all GPUs that answer. Raises OSError where there are some and none answers."""
        if self._handles is None:
            self._handles = []
            self._handles = self._open()
        if not self._handles:
            return None
        total = free = 0
        trouble = ""
        for handle in self._handles:
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError as error:  # one that fell off the bus; the others still work
                trouble = str(error)
                continue
            total, free = total + memory.total, free + memory.free
        if not total:
            raise OSError(f"no GPU tells its memory: {trouble}")
        return MemorySnapshot(total_bytes=total, free_bytes=min(free, total), source="gpu")

    def _open(self) -> list[Any]:
        try:
            self._nvml = nvml = self._load()
        except ImportError:
            if self._driver.exists():
                logger.warning(
                    "There is an NVIDIA driver here, and no library to ask it: install gaelp-tasks[gpu], so "
                    "that the memory of GPUs is announced."
                )
            return []
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(each) for each in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            if self._driver.exists():
                logger.warning("The NVIDIA driver does not answer, so no GPU is counted: %s", error)
            return []
        return [handle for handle in handles if self._has_memory(handle)]

    def _has_memory(self, handle: Any) -> bool:
        """False for a GPU that shares the host's RAM: the other probes see that."""
        try:
            self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError_NotSupported:
            return False
        except self._nvml.NVMLError:  # it may answer later
            return True
        return True
