"""The life of one run of a training job: taken over in SQL, started, listened to, ended.

a message is claimed -> its job is found -> it waits for room here -> it is taken over in SQL, fenced
  -> folder, files, environment -> the process runs, and each second: lines, metrics, checkpoints to SQL,
     wishes from there, and whether somebody more urgent waits
  -> it ends, or is told to: SIGTERM, a time to save itself, SIGKILL -> what becomes of it, in one step
  with the quota and the money -> messages of those that may come now
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, NamedTuple

from gaelp_tasks.cancellation import Cancellation, Cancelled, Reason
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.jobs import Grip, Jobs
from gaelp_tasks.errors import DatabaseUnavailable, GaelpError
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.models.training import CHECKPOINTS, Stream, TrainingJob, Wish
from gaelp_tasks.services import job_runs
from gaelp_tasks.services.job_runs import Overtaken, Report
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.training_calls import Call
from gaelp_tasks.training import checkpoints
from gaelp_tasks.training.endings import PREEMPTED_AT_MOST, Ending, decide
from gaelp_tasks.training.folders import folder_of
from gaelp_tasks.training.output import Output
from gaelp_tasks.training.places import NeverFits, NoRoom, Places, Standing
from gaelp_tasks.training.processes import Process, write_private
from gaelp_tasks.training.runner import Runner, Spec

__all__ = ["Around", "Executor", "Outcome"]

logger = logging.getLogger(__name__)

BEAT_S = 1.0  #: between two reports
LATER_S = 2.0  #: what does not fit here is for another worker, or for later
AWAY_S = 1.0  #: before the next try where the database does not answer
FOLDER = 0o700


class Outcome(NamedTuple):
    """What is left to do once the run is over."""

    calls: list[Call] = []  # noqa: RUF012  never changed
    gives_back: str = ""  #: why the message goes back to its queue; '' where it does not
    job: TrainingJob | None = None  #: as it stands then, where this run has ended it


@dataclass
class Around:
    """What a run needs from outside; tests replace it."""

    db: Database
    settings: Settings
    places: Places
    runner: Runner
    node: str
    commands: Mapping[str, tuple[str, ...]]
    #: environment and secrets of a job's agent, and how its trainer is called
    recipe: Callable[[TrainingJob], Awaitable[tuple[Mapping[str, str], str]]]
    #: whether jobs more urgent than this wait in Redis; with True also whether it is our turn to make way
    urgent: Callable[[int, bool], Awaitable[bool]]
    #: records metrics of a job
    record: Callable[[TrainingJob, list[dict[str, Any]]], Awaitable[None]]
    told: Callable[[TrainingJob, str], Awaitable[None]]  #: tells watchers how it stands
    rng: Random = field(default_factory=SystemRandom)


class Executor:
    """One run, for one message."""

    def __init__(self, around: Around, grip: Grip, button: Cancellation) -> None:
        self._at, self._grip, self._button = around, grip, button
        self._output = Output()
        self._known: dict[str, int] = {}  # checkpoints that were told of, or are too old: name -> bytes
        self._there: dict[str, int] = {}  # those of the last look
        self._wish: Wish | None = None
        self._progress: float | None = None  # as it was told to watchers
        self._waited = 0  # beats in a row at which somebody more urgent waited

    async def run(self) -> Outcome:
        """From the claimed message to its end. Raises DatabaseUnavailable before the run began."""
        job = await Jobs(self._at.db, None).find(self._grip.job_id)
        if job is None or job.task_id != self._grip.task_id:
            return Outcome()
        stopper = asyncio.create_task(self._stopped())
        try:
            async with self._at.places.taken(
                self._grip.task_id, _needs(job), job.priority, stopper
            ) as standing:
                return await self._begin(standing, stopper)
        except NeverFits as error:
            return Outcome(await job_runs.postpone(self._at.db, self._grip, f"It needs {error}.", LATER_S))
        except NoRoom as error:
            if error.taken_by_others:
                return Outcome(
                    await job_runs.postpone(self._at.db, self._grip, f"It waits: {error}.", LATER_S)
                )
            if not stopper.done():
                await job_runs.explain(self._at.db, self._grip, f"It waits: {error}.")
            return Outcome(gives_back=str(error))
        finally:
            stopper.cancel()

    async def _begin(self, standing: Standing, stopper: "asyncio.Task[Reason]") -> Outcome:
        at = self._at
        taken = await job_runs.begin(at.db, self._grip, at.settings, node=at.node, runner=at.runner.name)
        job = taken.job
        if taken.wait_until is not None:
            later_s = max(0.0, (taken.wait_until - datetime.now(UTC)).total_seconds())
            return Outcome(await job_runs.postpone(at.db, self._grip, "", later_s))
        if job is None:
            return Outcome(list(taken.calls))
        standing.preemptible = job.preemptible and job.preemptions < PREEMPTED_AT_MOST
        await at.told(job, "")
        try:
            code, stopped = await self._run(job, standing, stopper)
        except Overtaken:
            logger.warning("Job %d went on elsewhere: what was late here was refused.", job.id)
            return Outcome()
        if stopped is Reason.LEASE:
            return Outcome(gives_back="its lease was lost")
        ending = decide(code, stopped, self._wish, job.attempts, job.retries, at.rng)
        return await self._settle(job, ending, code)

    # --- the process ---

    async def _run(
        self, job: TrainingJob, standing: Standing, stopper: "asyncio.Task[Reason]"
    ) -> tuple[int | None, Reason | None]:
        try:
            spec = await self._prepare(job)
            process = await Process.start(self._at.runner.launch(spec), self._output.add)
        except (OSError, ValueError, GaelpError) as error:
            if isinstance(error, DatabaseUnavailable):
                raise
            self._output.add(Stream.SYSTEM, f"It cannot be started: {error}")
            return None, None
        ending = asyncio.create_task(process.ended())
        try:
            stopped = await self._watch(job, standing, spec, ending, stopper)
            if stopped is not None and not ending.done():
                await self._stop(process, ending, spec, at_once=stopped is Reason.LEASE)
            return await ending, stopped
        finally:
            if not ending.done():
                await asyncio.shield(process.kill())
                ending.cancel()

    async def _watch(
        self,
        job: TrainingJob,
        standing: Standing,
        spec: Spec,
        ending: "asyncio.Task[int]",
        stopper: "asyncio.Task[Reason]",
    ) -> Reason | None:
        """Until it ends by itself (None), or is to be stopped."""
        while True:
            await asyncio.wait({ending, stopper}, timeout=BEAT_S, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return None
            if stopper.done() and stopper.result() is Reason.LEASE:
                return Reason.LEASE
            ran_s = await self._beat(job, spec)
            if stopper.done():
                return stopper.result()
            if self._wish is not None:
                return Reason.USER
            if ran_s >= job.timeout_s:
                return Reason.DEADLINE
            if await self._makes_way(job, standing):
                return Reason.PREEMPTION

    async def _stop(
        self, process: Process, ending: "asyncio.Task[int]", spec: Spec, *, at_once: bool
    ) -> None:
        if not at_once:
            process.terminate()
            _, late = await asyncio.wait({ending}, timeout=self._at.settings.training_grace_s)
            if not late:
                return
            self._output.add(Stream.SYSTEM, f"Job {spec.job_id} did not end in time: killed.")
        await process.kill()

    async def _makes_way(self, job: TrainingJob, standing: Standing) -> bool:
        """Whether it stops for a more urgent one, which has waited for two beats."""
        if not standing.preemptible or self._at.places.first_to_yield() is not standing:
            self._waited = 0
            return False
        if self._at.places.waits_above(job.priority):
            return True
        if not await self._at.urgent(job.priority, self._waited > 0):
            self._waited = 0
            return False
        self._waited += 1
        return self._waited > 1

    # --- what is told ---

    async def _beat(self, job: TrainingJob, spec: Spec) -> float:
        """Write down how it goes; how long it has run in all. Raises Overtaken."""
        report, metrics = await self._report(spec.checkpoints), self._output.metrics()
        if metrics:
            await self._at.record(job, metrics)
        try:
            self._wish, ran_s = await job_runs.tell(self._at.db, self._grip, report, self._at.settings)
        except DatabaseUnavailable as error:
            logger.warning("Job %d cannot be reported on now: %s", job.id, error)
            self._output.back(list(report.lines))
            return 0.0
        self._known = self._there
        if report.progress != self._progress:
            self._progress = report.progress
            await self._at.told(job.model_copy(update={"progress": report.progress, "step": report.step}), "")
        return ran_s

    async def _report(self, folder: Path) -> Report:
        # beside the loop, which is that of every invocation of this worker: a disk may be slow, files many
        there = await asyncio.to_thread(checkpoints.found, folder)
        self._there = {one.path: one.size_bytes for one in there}
        fresh = [one for one in there if self._known.get(one.path) != one.size_bytes][-CHECKPOINTS:]
        return Report(
            lines=self._output.lines(),
            checkpoints=fresh,
            progress=self._output.progress,
            step=self._output.step,
        )

    async def _settle(self, job: TrainingJob, ending: Ending, code: int | None) -> Outcome:
        """Write down what has become of it; where the database is away, as long as the lease is ours."""
        folder = folder_of(self._at.settings, job) / "checkpoints"
        while True:
            report = await self._report(folder)
            if metrics := self._output.metrics():
                await self._at.record(job, metrics)
            try:
                after, calls = await job_runs.end(
                    self._at.db, self._grip, ending, code, report, self._at.settings
                )
            except Overtaken:
                logger.warning("Job %d went on elsewhere: what was late here was refused.", job.id)
                return Outcome()
            except DatabaseUnavailable as error:
                logger.warning("The end of job %d waits for the database: %s", job.id, error)
                self._output.back(list(report.lines))
                if self._button.reason in (Reason.LEASE, Reason.SHUTDOWN):
                    return Outcome(gives_back="the database is away")
                await asyncio.sleep(AWAY_S)
                continue
            await self._at.told(after, ending.reason)
            return Outcome(calls, ending.reason if ending.gives_back else "", after)

    # --- before ---

    async def _prepare(self, job: TrainingJob) -> Spec:
        """Its folder and files. Raises OSError, PolicyViolated, SettingsError."""
        at = self._at
        declared, trainer = await at.recipe(job)
        command = at.commands.get(trainer)
        if command is None:
            raise ValueError(f"GAELP_TRAINING_COMMANDS has no trainer {trainer!r}.")
        folder = folder_of(at.settings, job)
        (folder / "checkpoints").mkdir(mode=FOLDER, parents=True, exist_ok=True)
        recorded = await Jobs(at.db, None).checkpoints(job.id)
        there = await asyncio.to_thread(checkpoints.found, folder / "checkpoints")
        self._known = {one.path: one.size_bytes for one in (*there[:-CHECKPOINTS], *recorded)}
        last = checkpoints.newest(there, recorded)
        if job.starts > 1:
            whence = f"checkpoint {last.path}" if last else "the beginning: no checkpoint is there"
            self._output.add(Stream.SYSTEM, f"It goes on from {whence}.")
        write_private(str(folder / "config.json"), json.dumps(job.config))
        write_private(str(folder / "hyperparams.json"), json.dumps(job.hyperparameters))
        return Spec(
            job_id=job.id,
            agent_id=job.agent_id,
            run=job.starts,
            command=command,
            image=job.docker_image,
            folder=folder,
            resume_from=last.path if last else None,
            hyperparameters=job.hyperparameters,
            declared=declared,
            needs=_needs(job),
        )

    async def _stopped(self) -> Reason:
        """Why it is to be stopped, once it is."""
        with suppress(Cancelled):
            async with self._button:
                await asyncio.Event().wait()
        return self._button.reason or Reason.USER


def _needs(job: TrainingJob) -> Resources:
    return Resources.read(job.resource_requirements)
