"""Tables of training jobs, their logs and checkpoints."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, JsonText, UtcTime
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.models.training import JobState, TrainingJob

__all__ = ["CheckpointRow", "JobRow", "LogRow", "job_of"]

Number = BigInteger().with_variant(Integer(), "sqlite")  #: SQLite counts up only what it calls INTEGER


class JobRow(Base):
    """One training job; what its message refers to."""

    __tablename__ = "training_jobs"
    __table_args__ = (
        Index(None, "tenant", "id"),
        Index(None, "state", "priority", "id"),
        Index(None, "agent_id"),
        {"sqlite_autoincrement": True},  # the id of a job that was thrown away is never given again
    )

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    owner: Mapped[str] = mapped_column(String(200))
    agent_id: Mapped[int] = mapped_column(BigInteger)
    agent_version: Mapped[int | None] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(String(100))
    priority: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(Text)
    wish: Mapped[str] = mapped_column(String(16))  #: of a running one: cancel, pause; '' for none
    cpu_milli: Mapped[int] = mapped_column(BigInteger)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    gpus: Mapped[int] = mapped_column(BigInteger)
    storage_bytes: Mapped[int] = mapped_column(BigInteger)
    hyperparameters: Mapped[dict[str, Any]] = mapped_column(JsonText)
    config: Mapped[dict[str, Any]] = mapped_column(JsonText)
    preemptible: Mapped[bool] = mapped_column(Boolean)
    retries: Mapped[int] = mapped_column(Integer)
    timeout_s: Mapped[float] = mapped_column(Float)
    docker_image: Mapped[str | None] = mapped_column(String(500))
    task_id: Mapped[str] = mapped_column(String(36))  #: of its newest message; older ones are void
    claim: Mapped[int] = mapped_column(BigInteger)  #: with the task id the fence of what its run writes
    runner: Mapped[str | None] = mapped_column(String(16))
    node: Mapped[str | None] = mapped_column(String(255))
    attempts: Mapped[int] = mapped_column(Integer)
    starts: Mapped[int] = mapped_column(Integer)
    deaths: Mapped[int] = mapped_column(Integer)  #: of workers, one after another, without a new checkpoint
    preemptions: Mapped[int] = mapped_column(Integer)
    exit_code: Mapped[int | None] = mapped_column(Integer)
    progress: Mapped[float | None] = mapped_column(Float)
    step: Mapped[int | None] = mapped_column(BigInteger)
    checkpoint: Mapped[str | None] = mapped_column(String(500))
    checkpoint_step: Mapped[int | None] = mapped_column(BigInteger)
    lines: Mapped[int] = mapped_column(BigInteger)  #: number of the newest line of its log
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    admitted_at: Mapped[datetime | None] = mapped_column(UtcTime)  #: its owner's quota holds it since
    published_at: Mapped[datetime | None] = mapped_column(UtcTime)  #: Redis has taken its message
    due_at: Mapped[datetime | None] = mapped_column(UtcTime)  #: not to be run before
    started_at: Mapped[datetime | None] = mapped_column(UtcTime)  #: the first run
    run_at: Mapped[datetime | None] = mapped_column(UtcTime)  #: the run under way
    seen_at: Mapped[datetime | None] = mapped_column(UtcTime)  #: its run was alive
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime)
    ran_s: Mapped[float] = mapped_column(Float)  #: all runs together, until `seen_at`

    @property
    def resources(self) -> Resources:
        """What it needs."""
        return Resources(
            cpu_milli=self.cpu_milli,
            memory_bytes=self.memory_bytes,
            gpus=self.gpus,
            storage_bytes=self.storage_bytes,
        )


class LogRow(Base):
    """One line of a job's log."""

    __tablename__ = "training_logs"

    job: Mapped[int] = mapped_column(
        Number, ForeignKey("training_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    run: Mapped[int] = mapped_column(Integer)
    stream: Mapped[str] = mapped_column(String(16))
    at: Mapped[datetime] = mapped_column(UtcTime)
    text: Mapped[str] = mapped_column(Text)


class CheckpointRow(Base):
    """One checkpoint of a job."""

    __tablename__ = "training_checkpoints"

    job: Mapped[int] = mapped_column(
        Number, ForeignKey("training_jobs.id", ondelete="CASCADE"), primary_key=True
    )
    path: Mapped[str] = mapped_column(String(500), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    step: Mapped[int | None] = mapped_column(BigInteger)
    run: Mapped[int] = mapped_column(Integer)
    at: Mapped[datetime] = mapped_column(UtcTime)


AS_THEY_ARE = (
    *("id", "agent_id", "agent_version", "name", "tenant", "owner", "priority", "state", "reason"),
    *("hyperparameters", "config", "preemptible", "retries", "timeout_s", "docker_image", "runner", "node"),
    *("task_id", "attempts", "starts", "preemptions", "exit_code", "progress", "step", "checkpoint"),
    *("checkpoint_step", "created_at", "due_at", "started_at", "ended_at"),
)


def job_of(row: JobRow) -> TrainingJob:
    """A row as others see it."""
    return TrainingJob(
        **{name: getattr(row, name) for name in AS_THEY_ARE},
        ran_s=round(row.ran_s, 3),
        status=JobState(row.state),
        resource_requirements=row.resources.quantities(),
    )
