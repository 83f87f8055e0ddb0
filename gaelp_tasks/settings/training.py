"""Settings of training jobs."""

from typing import Annotated, Literal

from pydantic import ByteSize, Field
from pydantic_settings import BaseSettings

__all__ = ["TrainingPlane"]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class TrainingPlane(BaseSettings):
    """What jobs a worker runs, how, and how many may wait."""

    training_places: int | None = Field(
        None, ge=0, le=512, description="training jobs of this worker at once; 0: none; empty: one per core"
    )
    training_cpus: NotNegative = Field(
        0.0, description="cores of this worker that jobs may ask for, all together; 0: those that it has"
    )
    training_memory: ByteSize = Field(
        ByteSize(0), description="the same of memory; 0: what the machine has beside GAELP_OS_RESERVE"
    )
    training_gpus: int = Field(0, ge=0, le=1024, description="the same of GPUs")
    training_runner: Literal["local", "docker"] = Field(
        "local", description="how jobs run: as processes of the worker's user, or in containers of images"
    )
    training_commands: dict[str, str] = Field(
        {},
        description='JSON object of trainers by name, which agents choose by: {"name": "program argument"}',
    )
    training_dir: str = Field(
        "",
        description="folder of jobs and their checkpoints, shared by all workers that run jobs; empty: "
        "$XDG_STATE_HOME/gaelp/training",
    )
    training_max_queued: int = Field(
        1000, ge=1, le=100_000, description="training jobs that may wait; more are refused, to be tried later"
    )
    training_timeout_s: Positive = Field(
        86_400.0, le=30 * 86_400.0, description="a job may run this long in all, where it names no time"
    )
    training_grace_s: NotNegative = Field(
        10.0, description="a job that is told to end may save itself within this; then it is killed"
    )
    training_log_lines: int = Field(
        10_000, ge=100, le=1_000_000, description="of a job's log the newest are kept"
    )
    training_keep_s: NotNegative = Field(
        30 * 86_400.0, description="a job that has ended is kept this long, with its folder; 0: for ever"
    )
