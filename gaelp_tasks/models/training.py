"""Training jobs: what may be asked for, their states and legal moves, and how they are told. Pure."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

from pydantic import Field, field_validator

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.image import ImageName
from gaelp_tasks.models.resources import Quantities
from gaelp_tasks.models.stored import Id, StoredObject, StoredText

__all__ = [
    "CHECKPOINTS",
    "ENDED",
    "MOVES",
    "Checkpoint",
    "JobLog",
    "JobState",
    "NewJob",
    "Stream",
    "TrainingJob",
    "Wish",
    "may_move",
    "variables",
]

LONGEST_NAME = 100
LONGEST_S = 30 * 86_400.0  #: that a job may run
MOST_BYTES = 32 * 1024  #: of hyperparameters, and of config, as JSON: each has to fit into an environment
PREFIX = "HYPERPARAM_"
CHECKPOINTS = 20  #: of a job that are noted, the newest; of each report as well


class JobState(StrEnum):
    """Where a training job stands."""

    QUEUED = "queued"  #: it waits: for a quota, a place, the time of its next try
    RUNNING = "running"
    PAUSED = "paused"  #: somebody paused it; it goes on from its last checkpoint
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

#: from a state to those that may follow; a run that failed, was preempted or lost its worker is queued again
MOVES: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED},
    ),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.PAUSED, *ENDED}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    **dict.fromkeys(ENDED, frozenset()),
}


def may_move(before: JobState, after: JobState) -> bool:
    """Whether a job may go from one state to the other."""
    return after in MOVES[before]


class Wish(StrEnum):
    """What somebody wants of a job that runs; its runner does it."""

    CANCEL = "cancel"
    PAUSE = "pause"


class Stream(StrEnum):
    """Where a line of a log comes from."""

    STDOUT = "stdout"
    STDERR = "stderr"
    SYSTEM = "system"  #: ours, on what happens to the job


def variables(hyperparameters: Mapping[str, Any]) -> dict[str, str]:
    """The environment in which hyperparameters reach a job: texts as they are, all else as JSON.

    Raises ValueError where two of them have the same name there, or a text holds a NUL.
    """
    found: dict[str, str] = {}
    for name, value in hyperparameters.items():
        variable = PREFIX + re.sub(r"[^A-Z0-9_]", "_", name.upper())
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        if variable in found:
            raise ValueError(f"two of them are called {variable} in the environment of the job")
        if "\0" in text:
            raise ValueError("a text holds a NUL, which no environment can hold")
        found[variable] = text
    return found


class NewJob(Frozen):
    """The body of `POST /api/v1/jobs`."""

    agent_id: Id
    agent_version: Annotated[int, Field(ge=1, lt=2**31)] | None = None  #: None: the newest
    name: Annotated[StoredText, Field(min_length=1, max_length=LONGEST_NAME)] = "training"
    priority: Annotated[int, Field(ge=1, le=10)] = 5  #: 10 first
    resource_requirements: Quantities = Quantities(cpu="1", memory="512Mi")
    hyperparameters: StoredObject = Field(default_factory=dict)
    config: StoredObject = Field(default_factory=dict)
    preemptible: bool = False  #: cheaper; it makes way for what is more urgent
    retries: Annotated[int, Field(ge=0, le=100)] = 3  #: after runs that failed
    #: that it may run, all its runs together; None: GAELP_TRAINING_TIMEOUT_S
    timeout_s: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None
    docker_image: ImageName | None = None  #: None: the agent's

    @field_validator("hyperparameters", "config")
    @classmethod
    def _small(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(value)) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes as JSON")
        return value

    @field_validator("hyperparameters")
    @classmethod
    def _nameable(cls, value: dict[str, Any]) -> dict[str, Any]:
        variables(value)
        return value


class TrainingJob(Frozen):
    """A job as it stands; what is None is not known yet."""

    id: int
    agent_id: int
    agent_version: int | None
    name: str
    tenant: str
    owner: str
    priority: int
    state: JobState
    status: JobState  #: the same, as the seed calls it
    reason: str  #: why it is in this state; '' where that needs no words
    resource_requirements: dict[str, str]
    hyperparameters: dict[str, Any]
    config: dict[str, Any]
    preemptible: bool
    retries: int
    timeout_s: float
    docker_image: str | None
    runner: str | None  #: local, docker
    node: str | None  #: the worker that runs it, or ran it last
    task_id: str
    attempts: int  #: runs spent
    starts: int  #: runs begun, also those that were preempted, handed back or lost
    preemptions: int
    exit_code: int | None  #: of its last run; negative: the signal that ended it
    progress: float | None  #: 0 to 1, as the job tells it
    step: int | None
    checkpoint: str | None  #: the newest one's name in the job's folder of checkpoints
    checkpoint_step: int | None
    created_at: datetime
    due_at: datetime | None  #: of its next try
    started_at: datetime | None
    ended_at: datetime | None
    ran_s: float  #: all runs together, to the millisecond

    def wire(self) -> dict[str, Any]:
        """As JSON."""
        return self.model_dump(mode="json")


class JobLog(NamedTuple):
    """A line of a job's log."""

    number: int  #: counts up over all runs; a gap is what was thrown away
    run: int  #: the start it belongs to
    stream: str
    at: datetime
    text: str

    def wire(self) -> dict[str, Any]:
        """As JSON."""
        return {**self._asdict(), "at": self.at.isoformat()}


class Checkpoint(NamedTuple):
    """A file from which a job can go on."""

    path: str  #: its name in the job's folder of checkpoints
    size_bytes: int
    step: int | None  #: the last number in its name
    at: datetime
