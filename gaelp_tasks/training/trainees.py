"""What a run needs of its job's agent, and what it tells about it."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.connections import AsyncRedis
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.trainees import version_of
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.models.agent import TERMINAL
from gaelp_tasks.models.event import AgentEvent, EventKind
from gaelp_tasks.models.measurement import NewMetrics
from gaelp_tasks.models.training import TrainingJob
from gaelp_tasks.services import metrics as metrics_service
from gaelp_tasks.services.agent_secrets import opened
from gaelp_tasks.services.telling import tell
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.resources import Resources
from gaelp_tasks.training.folders import DEFAULT

__all__ = ["recipe", "record", "told"]

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """What services of the control plane work with."""

    settings: Settings
    db: Database
    app: GaelpApp
    redis: AsyncRedis


async def recipe(db: Database, settings: Settings, job: TrainingJob) -> tuple[Mapping[str, str], str]:
    """Its environment with its secrets, and the name of its trainer: `trainer` in the agent's config.

    Raises ValueError where the agent is not there, or ended; Conflict where a secret cannot be opened.
    """
    async with db.reading() as session:
        found = await version_of(session, job.agent_id, job.agent_version, job.tenant)
        if found is None or found.state in TERMINAL:
            raise ValueError(f"agent {job.agent_id} is not there any more.")
        secrets = await opened(session, settings, job.tenant, job.agent_id)
    trainer = found.spec.config.get("trainer", DEFAULT)
    return {**found.spec.environment, **secrets}, str(trainer)


async def record(db: Database, at: Resources, job: TrainingJob, metrics: list[dict[str, Any]]) -> None:
    """Keep what the job has measured, as far as it can be kept: metrics never stop a job."""
    place = Place(at.settings, db, app, at.redis)
    fit = []
    for told in metrics:
        try:
            fit.append(NewMetrics.model_validate({**_numbers(told), **_fields(told), "job_id": job.id}))
        except ValueError as error:
            logger.info("Metrics of job %d are not kept: %s", job.id, type(error).__name__)
    if fit:
        try:
            await metrics_service.record_all(place, job.agent_id, fit, tenant=job.tenant)
        except GaelpError as error:
            logger.info("Metrics of job %d are not kept: %s", job.id, error)


def _fields(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name in {"step", "values", "resources"}}


def _numbers(told: Mapping[str, Any]) -> dict[str, float]:
    """What counts as a value: a text beside them must not cost the others."""
    return {
        name: value
        for name, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


async def told(at: Resources, job: TrainingJob, message: str) -> None:
    """Tell those who watch its agent."""
    data = {"job_id": job.id, "status": job.state.value, "progress": job.progress, "message": message}
    await tell(at.redis, at.keys, AgentEvent(event=EventKind.JOB, agent_id=job.agent_id, data=data))
