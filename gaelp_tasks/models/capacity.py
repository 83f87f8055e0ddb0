"""What a node has and uses, as its worker announces it."""

from typing import Annotated

from pydantic import Field

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.usage import Seconds

__all__ = ["Bytes", "MemorySnapshot", "NodeSnapshot"]

Bytes = Annotated[int, Field(ge=0)]


class MemorySnapshot(Frozen):
    """Memory of a node at one moment."""

    total_bytes: Bytes
    free_bytes: Bytes  #: what new work could take, caches counted as free
    source: str  #: which probe said so


class NodeSnapshot(Frozen):
    """One worker and its Ollama server; kept in Redis for as long as the worker lives."""

    worker: str  #: Celery's name of the worker, gaelp@host
    pid: int
    url: str  #: the Ollama server
    healthy: bool  #: the server answered the last question
    version: str = ""  #: of the server
    models: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    slots: int  #: invocations that may run at once
    running: tuple[str, ...] = ()  #: their ids
    memory: MemorySnapshot
    started_at: Seconds  #: Unix time
    seen_at: Seconds  #: Unix time, by the worker's clock
