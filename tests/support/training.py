"""Training jobs for tests: an agent of which there is one, who trains it, and trainers of a few lines."""

import asyncio
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import select

from gaelp_tasks.celery_app import app
from gaelp_tasks.db.agent_rows import AgentRow, VersionRow
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.job_rows import JobRow, job_of
from gaelp_tasks.db.jobs import Jobs
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.models.training import ENDED, JobState, NewJob, TrainingJob
from gaelp_tasks.services import jobs
from gaelp_tasks.settings import Settings
from gaelp_tasks.training.runner import Spec

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CALLER = Caller(name="ada", tenant="t", role=Role.USER)
SMALL = {"cpu": "10m", "memory": "1Mi"}

#: counts to `steps` with a checkpoint at each, and goes on from its last; writes down each begin and end;
#: stays at step 5 while the file `held_by` is there
COUNTER = """
import json, os, signal, sys, time
config = json.load(open(sys.argv[sys.argv.index("--config") + 1]))
folder, last = os.environ["GAELP_CHECKPOINT_DIR"], os.environ.get("GAELP_RESUME_FROM")
step = json.load(open(last))["step"] if last else 0
def note(what):
    with open(config["diary"], "a") as diary:
        diary.write(f"{os.environ['GAELP_JOB_ID']} {what} {step} {os.getpid()}\\n")
note("begin")
print("from step", step)
print("region", os.environ.get("REGION"), "names", *sorted(os.environ))
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
while step < config["steps"]:
    while step >= 5 and os.path.exists(config.get("held_by", "")) and not asked:
        time.sleep(0.02)
    time.sleep(config.get("step_s", 0.05))
    step += 1
    with open(f"{folder}/.{step}", "w") as file:
        json.dump({"step": step}, file)
    os.rename(f"{folder}/.{step}", f"{folder}/step-{step}.json")
    print("GAELP_METRICS", json.dumps({"step": step, "progress": step / config["steps"], "loss": 1 / step}))
    if step == config.get("fails_at") and not last:
        sys.exit(3)
    if asked:
        note("asked")
        sys.exit(0)
note("end")
print("done", os.environ.get("HYPERPARAM_RATE"))
"""


def environment(sql_url: str, home: Path, **settings: Any) -> dict[str, str]:
    """What a worker needs that runs jobs of `School(sql_url, home)`."""
    trainer = home / "counter.py"
    trainer.write_text(COUNTER)
    return {
        "GAELP_BROKER_URL": app.settings.broker_url,
        "GAELP_DATABASE_URL": sql_url,
        "GAELP_OLLAMA_NODES": "http://127.0.0.1:1",
        "GAELP_TRAINING_DIR": str(home / "training"),
        "GAELP_TRAINING_COMMANDS": json.dumps({"default": f"{sys.executable} -S {trainer}"}),
        "GAELP_TRAINING_PLACES": "4",
        "GAELP_TRAINING_GRACE_S": "3",
        **{f"GAELP_{name.upper()}": str(value) for name, value in settings.items()},
    }


class School:
    """A database with one agent, and jobs that train it with the trainer COUNTER."""

    def __init__(self, sql_url: str, folder: Path, **settings: Any) -> None:
        self.diary = folder / "diary"
        self.diary.touch()
        self.db = Database(sql_url)
        given = {"broker_url": app.settings.broker_url, "database_url": sql_url}
        self.settings = Settings(**given | settings)
        self.desk = SimpleNamespace(app=app, db=self.db, settings=self.settings)

    async def open(self) -> None:
        await self.db.migrate()
        self.agent_id = await self.enrol(environment={"REGION": "eu"})

    async def enrol(self, tenant: str = "t", **spec: Any) -> int:
        """A new agent; its id."""
        told = {"name": "a", "type": "research", **spec}
        async with self.db.writing() as session:
            agent = AgentRow(
                tenant=tenant,
                owner="ada",
                name="a",
                type=told["type"],
                state="running",
                version=1,
                created_at=NOW,
                updated_at=NOW,
            )
            session.add(agent)
            await session.flush()
            session.add(
                VersionRow(agent=agent.id, number=1, tenant=tenant, author="ada", created_at=NOW, spec=told)
            )
            return int(agent.id)

    async def close(self) -> None:
        await self.db.close()

    def asked(self, steps: int = 3, **body: Any) -> NewJob:
        config = {"steps": steps, "diary": str(self.diary), **body.pop("config", {})}
        given = {"agent_id": self.agent_id, "resource_requirements": SMALL, "config": config, **body}
        return NewJob.model_validate(given)

    async def submit(self, steps: int = 3, *, caller: Caller = CALLER, **body: Any) -> TrainingJob:
        return await jobs.submit(self.desk, caller, self.asked(steps, **body))

    async def find(self, job: TrainingJob) -> TrainingJob:
        found = await Jobs(self.db, None).find(job.id)
        assert found is not None
        return found

    async def by_id(self, job_id: int) -> TrainingJob:
        found = await Jobs(self.db, None).find(job_id)
        assert found is not None
        return found

    async def all(self) -> list[TrainingJob]:
        async with self.db.reading() as session:
            mine = select(JobRow).where(JobRow.agent_id == self.agent_id).order_by(JobRow.id)
            return [job_of(row) for row in await session.scalars(mine)]

    async def until(self, job: TrainingJob, *states: JobState, within_s: float = 20.0) -> TrainingJob:
        """The job, once it is in one of these states; without any, once it has ended."""
        async with asyncio.timeout(within_s):
            while (found := await self.find(job)).state not in (states or ENDED):
                await asyncio.sleep(0.05)
        return found

    async def until_steps(self, job: TrainingJob, steps: int) -> TrainingJob:
        async with asyncio.timeout(20):
            while ((found := await self.find(job)).step or 0) < steps:
                await asyncio.sleep(0.05)
        return found

    async def log(self, job: TrainingJob) -> str:
        return "\n".join(line.text for line in await Jobs(self.db, None).logs(job.id))

    def notes(self) -> list[tuple[int, str, int, int]]:
        """Of each begin and end: job, what, step, process."""
        rows = (line.split() for line in self.diary.read_text().splitlines())
        return [(int(job), what, int(step), int(pid)) for job, what, step, pid in rows]

    def kill(self, job: TrainingJob) -> None:
        """Its process, as the kernel does where memory is short."""
        _, _, _, pid = next(note for note in reversed(self.notes()) if note[:2] == (job.id, "begin"))
        os.kill(pid, signal.SIGKILL)


def plain_spec(command: tuple[str, ...]) -> Spec:
    """A run of this command, without anything else."""
    nothing: dict[str, str] = {}
    return Spec(1, 1, 1, command, None, Path("/tmp"), None, nothing, nothing, Resources())  # noqa: S108
