"""What a run needs of its job's agent, and what it tells about it."""

from collections.abc import Mapping
from typing import Any

from gaelp_tasks.db.database import Database
from gaelp_tasks.db.trainees import version_of
from gaelp_tasks.models.event import AgentEvent, EventKind
from gaelp_tasks.models.training import TrainingJob
from gaelp_tasks.services.telling import tell
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.resources import Resources
from gaelp_tasks.training.folders import DEFAULT

__all__ = ["recipe", "record", "told"]


async def recipe(db: Database, settings: Settings, job: TrainingJob) -> tuple[Mapping[str, str], str]:  # noqa: ARG001
    """Its environment with its secrets, and the name of its trainer: `trainer` in the agent's config.

    Raises ValueError where the agent is not there.
    """
    async with db.reading() as session:
        found = await version_of(session, job.agent_id, job.agent_version, job.tenant)
    if found is None:
        raise ValueError(f"Agent {job.agent_id} has no version {job.agent_version} any more.")
    trainer = found.spec.config.get("trainer", DEFAULT)
    return found.spec.environment, str(trainer)


async def record(db: Database, at: Resources, job: TrainingJob, metrics: list[dict[str, Any]]) -> None:
    """Keep what the job has measured."""


async def told(at: Resources, job: TrainingJob, message: str) -> None:
    """Tell those who watch its agent."""
    data = {"job_id": job.id, "status": job.state.value, "progress": job.progress, "message": message}
    await tell(at.redis, at.keys, AgentEvent(event=EventKind.JOB, agent_id=job.agent_id, data=data))
