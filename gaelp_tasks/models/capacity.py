"""What a node has and uses, as its worker announces it."""

from typing import Annotated

from pydantic import ConfigDict, Field

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.usage import Seconds

__all__ = ["Bytes", "MemorySnapshot", "ModelSlots", "NodeSnapshot", "Resident"]

Bytes = Annotated[int, Field(ge=0)]


class Resident(Frozen):
    """A model in the memory of a server."""

    name: str
    size_bytes: Bytes = 0  #: all that it takes; 0: not told
    vram_bytes: Bytes = 0  #: the part of it on GPUs


class MemorySnapshot(Frozen):
    """Memory of a node at one moment; a field of a later release is passed over, as in NodeSnapshot."""

    model_config = ConfigDict(extra="ignore")

    total_bytes: Bytes
    free_bytes: Bytes  #: what new work could take, caches counted as free
    source: str  #: which probe said so: host, cgroup v2, cgroup v1, gpu, budget; unknown: none did


class ModelSlots(Frozen):
    """What a node gives one model at one moment; a field of a later release is passed over."""

    model_config = ConfigDict(extra="ignore")

    model: str
    slots: Annotated[int, Field(ge=0)]  #: invocations of it that may be here at once; 0: none now
    busy: Annotated[int, Field(ge=0)] = 0  #: invocations of it that are here, at work or waiting for its load
    phase: str = ""  #: loading, loaded, draining, unloading; '' where it is not in memory
    others: bool = False  #: somebody else has loaded it: it is used, and never unloaded
    why: str = ""  #: why its invocations wait, in words; '' while none does
    until: Seconds | None = None  #: Unix time when that may change by itself; None: nobody can tell
    run_s: Seconds | None = None  #: how long its last runs took on the mean; None before one has ended


class NodeSnapshot(Frozen):
    """One worker and one of its Ollama servers; kept in Redis for as long as the worker lives.

    A later release may tell more: what is not known here is passed over, so that an upgrade hides no node.
    """

    model_config = ConfigDict(extra="ignore")

    worker: str  #: Celery's name of the worker, gaelp@host
    pid: int
    url: str  #: the Ollama server, without credentials
    healthy: bool  #: the server answered the last question, and its model too where it was asked
    trouble: str = ""  #: one sentence on what is wrong; '' when well
    version: str = ""  #: of the server
    models: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    slots: int  #: invocations that may run here at once
    running: tuple[str, ...] = ()  #: ids of those that run here
    tokens: tuple[int, ...] = ()  #: how many came so far for each of `running`
    #: ids of the worker's runs that none of its several nodes has answered yet; each of these tells them all
    unplaced: tuple[str, ...] = ()
    #: ids of `running` and `unplaced` that embed: they share calls of their model and take no slot
    embedding: tuple[str, ...] = ()
    #: why the worker takes nothing new: 'cordoned' or 'stopping'; '' while it does
    closed: str = ""
    tokens_per_s: Annotated[float, Field(ge=0)] = 0.0  #: of all runs here together, over the last seconds
    memory: MemorySnapshot
    held_bytes: Bytes | None = None  #: RAM that the server and its runners hold; None where that is not seen
    by_model: tuple[ModelSlots, ...] = ()  #: models in memory or asked for; () from an earlier release
    release: str = ""  #: of the worker's gaelp-tasks; '' from one that did not tell
    num_parallel: Annotated[int, Field(ge=0)] = 0  #: GAELP_NUM_PARALLEL of the worker; 0: not told
    num_ctx: Annotated[int, Field(ge=0)] | None = None  #: its GAELP_NUM_CTX; None: not told
    holder: str = ""  #: with what the names of its leases begin; '': not told
    started_at: Seconds  #: Unix time
    seen_at: Seconds  #: Unix time, by the worker's clock

    @property
    def busy(self) -> int:
        """How many of its slots are taken."""
        return len(set(self.running) - set(self.embedding))
