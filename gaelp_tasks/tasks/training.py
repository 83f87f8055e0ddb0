"""`gaelp.run_training_job`, and what beat has done for jobs that nobody runs."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.exceptions import Reject
from celery.signals import worker_shutting_down

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.celery_app import app
from gaelp_tasks.connections import unavailable
from gaelp_tasks.errors import DatabaseUnavailable, SettingsError
from gaelp_tasks.queues import TRAINING, lists, step_of
from gaelp_tasks.tasks.database import database_at
from gaelp_tasks.training.places import shared_places

if TYPE_CHECKING:
    from gaelp_tasks.db.database import Database
    from gaelp_tasks.training.executor import Around, Outcome
    from gaelp_tasks.training.runner import Runner

__all__ = ["prune_jobs", "resume_jobs", "run_training_job"]

logger = logging.getLogger(__name__)

_migrated: set["Database"] = set()

AWAY_S = 5.0  #: where the database does not serve us no job is claimed for so long
TURN_MS = 2000  #: from one that makes way to the next, over all workers: a place has to be found to be free


@worker_shutting_down.connect(weak=False)
def _stop(**_: Any) -> None:
    """Jobs save themselves within the time that runs are given to finish."""
    from gaelp_tasks.tasks.resources import shared_resources  # noqa: PLC0415  only a worker hears this

    for task_id in shared_places()[0].end():
        shared_resources().runs.stop(task_id, Reason.SHUTDOWN)


@app.task(bind=True, name="gaelp.run_training_job", ignore_result=True, max_retries=None)
def run_training_job(self: Task, job_id: int) -> None:
    """Run a training job; what it is, and how far it has come, is in SQL."""
    from gaelp_tasks.runtime import shared_runtime  # noqa: PLC0415  only a running task needs what these
    from gaelp_tasks.tasks.resources import shared_resources  # noqa: PLC0415  bring

    at, task_id = shared_resources(), self.request.id
    claim = int(self.request.get("gaelp_claim") or 1)
    if claim > 1:
        _forget_deaths(task_id)
    button = at.runs.enter(task_id)
    places = shared_places()[0]
    try:
        outcome = shared_runtime().run(_run(job_id, task_id, claim))
    except (DatabaseUnavailable, SettingsError) as error:
        logger.warning("Job %d waits, for this worker cannot run it: %s", job_id, error)
        places.close_for(AWAY_S)
        raise Reject(error, requeue=True) from error
    except Exception as error:
        logger.exception("The run of job %d broke off.", job_id)
        places.close_for(AWAY_S)
        raise Reject(error, requeue=True) from error
    finally:
        at.runs.leave(task_id, button)
    if outcome.gives_back:
        raise Reject(outcome.gives_back, requeue=True)


@app.task(name="gaelp.maintenance.resume_jobs", ignore_result=True)
def resume_jobs() -> int:
    """Let in jobs whose quota is free by now, and publish again what Redis has lost; returns how many."""
    from gaelp_tasks.services import job_line  # noqa: PLC0415  see run_training_job

    async def resume(db: "Database") -> int:
        return await job_line.upkeep(app, db, app.settings)

    return _in_database(resume)


@app.task(name="gaelp.maintenance.prune_jobs", ignore_result=True)
def prune_jobs() -> int:
    """Throw away jobs that ended longer ago than GAELP_TRAINING_KEEP_S, and their folders here."""
    from gaelp_tasks.services import job_runs  # noqa: PLC0415  see run_training_job
    from gaelp_tasks.training import folders  # noqa: PLC0415

    keep_s = app.settings.training_keep_s
    if not keep_s:
        return 0

    async def prune(db: "Database") -> int:
        count = 0
        while old := await job_runs.prune(db, datetime.now(UTC) - timedelta(seconds=keep_s)):
            for job in old:
                await asyncio.to_thread(folders.remove, app.settings, job)
            count += len(old)
        return count

    return _in_database(prune)


def _in_database(duty: Any) -> int:
    """Do it where the database is; 0 where that is not here, or does not serve us."""
    from gaelp_tasks.db.address import is_here  # noqa: PLC0415  see run_training_job
    from gaelp_tasks.runtime import shared_runtime  # noqa: PLC0415

    async def do() -> int:
        return int(await duty(await _database()))

    try:
        return shared_runtime().run(do()) if is_here(app.settings.sql_url) else 0
    except (DatabaseUnavailable, SettingsError) as error:
        logger.warning("Training jobs cannot be looked after: %s", error)
        return 0


async def _run(job_id: int, task_id: str, claim: int) -> "Outcome":
    from gaelp_tasks.db.jobs import Grip  # noqa: PLC0415  see run_training_job
    from gaelp_tasks.services import job_line  # noqa: PLC0415
    from gaelp_tasks.tasks.resources import shared_resources  # noqa: PLC0415
    from gaelp_tasks.training.executor import Executor  # noqa: PLC0415

    around = await _around()
    button = shared_resources().runs.enter(task_id)
    outcome = await Executor(around, Grip(job_id, task_id, claim), button).run()
    await job_line.publish(app, around.db, outcome.calls)
    return outcome


async def _around() -> "Around":
    from gaelp_tasks.tasks.resources import shared_resources  # noqa: PLC0415  see run_training_job
    from gaelp_tasks.training.executor import Around  # noqa: PLC0415
    from gaelp_tasks.training.folders import commands  # noqa: PLC0415
    from gaelp_tasks.training.trainees import recipe, record, told  # noqa: PLC0415

    at, db = shared_resources(), await _database()
    return Around(
        db=db,
        settings=app.settings,
        places=shared_places()[0],
        runner=_runner(),
        node=at.worker,
        commands=commands(app.settings),
        recipe=lambda job: recipe(db, app.settings, job),
        urgent=_urgent,
        record=lambda job, metrics: record(db, at, job, metrics),
        told=lambda job, message: told(at, job, message),
        rng=at.rng,
    )


def _runner() -> "Runner":
    from gaelp_tasks.training.docker import DockerRunner  # noqa: PLC0415  see run_training_job
    from gaelp_tasks.training.local import LocalRunner  # noqa: PLC0415

    settings = app.settings
    return LocalRunner() if settings.training_runner == "local" else DockerRunner(settings.training_images)


async def _urgent(priority: int, takes_turn: bool) -> bool:
    """Whether more urgent jobs wait; of all workers one at a time makes way."""
    from gaelp_tasks.tasks.resources import shared_resources  # noqa: PLC0415  see run_training_job

    at = shared_resources()
    names = lists(TRAINING)[: step_of(priority)]
    if not names:
        return False
    try:
        if not await at.redis.exists(*(at.keys.queue(name) for name in names)):
            return False
        return not takes_turn or bool(await at.redis.set(at.keys.training_turn, "", nx=True, px=TURN_MS))
    except unavailable:
        return False


def _forget_deaths(task_id: str) -> None:
    """SQL counts them: by Redis' own count it would have to run alone, and keep a whole worker for hours."""
    try:
        app.redis.delete(app.keys.deaths(task_id))
    except unavailable as error:
        logger.warning("The deaths of %s stay counted: %s", task_id, error)


async def _database() -> "Database":
    """The database of this process with the newest tables. Raises DatabaseUnavailable, SettingsError."""
    db = database_at(app.settings.sql_url, "training")
    if db not in _migrated:
        await db.migrate()
        _migrated.add(db)
    return db
