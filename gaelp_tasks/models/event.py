"""What is told of an agent to those who watch it: the JSON of the channel `gaelp:told:<agent_id>`.

    {"event": "metrics", "agent_id": 1, "at": 1767225600.25, "data": {"reward": 0.4, "step": 120}}

A watcher gets it byte for byte, so what stands in it may be seen by whoever may see the agent.
"""

from enum import StrEnum
from time import time
from typing import Annotated

from pydantic import Field

from gaelp_tasks.models.frozen import Frozen, JsonObject

__all__ = ["MOST_BYTES", "AgentEvent", "EventKind"]

MOST_BYTES = 64 * 1024  #: of one event as JSON; a larger one is not told


class EventKind(StrEnum):
    """What has happened, and what `data` holds of it."""

    METRICS = "metrics"  #: the metrics as they were recorded, as GET .../metrics shows an entry
    STATE = "state"  #: the agent's or a deployment's: status, was, and what else explains it
    JOB = "job"  #: a training job's: job_id, status, progress (0 to 1, None: unknown), message
    BUDGET = "budget"  #: owner, limit_micro, spent_micro, held_micro; stopped: whether it stopped something


class AgentEvent(Frozen):
    """One thing that has happened to an agent. Raises ValidationError for JSON that nobody could read."""

    event: EventKind
    agent_id: Annotated[int, Field(ge=1)]
    at: float = Field(default_factory=time)  #: Unix seconds, by the clock of who tells it
    data: JsonObject
