"""Training jobs in a real worker: they run, are told about, cancelled, paused, tried again, and go on."""

import asyncio
import shutil

import pytest
import pytest_asyncio

from gaelp_tasks.celery_app import app
from gaelp_tasks.db.jobs import Jobs
from gaelp_tasks.db.measurements import Measurements
from gaelp_tasks.models.training import JobState
from gaelp_tasks.services import jobs
from support.training import CALLER, School, environment
from support.worker import WorkerProcess


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("school")


@pytest.fixture(scope="module")
def sql(home, newest_tables):
    return f"sqlite:///{shutil.copy(newest_tables, home / 'gaelp.db')}"


@pytest.fixture(scope="module")
def trainer(broker, home, sql):
    """A worker with four places, shared by the tests of this module."""
    app.redis.flushdb()
    with WorkerProcess(home, **environment(sql, home)) as running:
        yield running


@pytest_asyncio.fixture
async def school(trainer, sql, tmp_path):
    made = School(sql, tmp_path)
    await made.open()
    yield made
    await made.close()


async def test_a_job_runs_to_its_end_and_everything_of_it_is_in_sql(school):
    job = await school.submit(5, hyperparameters={"rate": 0.5})
    assert job.state is JobState.QUEUED
    done = await school.until(job)
    assert (done.state, done.exit_code, done.progress, done.step) == (JobState.COMPLETED, 0, 1.0, 5)
    assert done.attempts == done.starts == 1
    assert done.ran_s > 0
    assert done.node == "worker@test"
    log = await school.log(job)
    assert "from step 0" in log
    assert "done 0.5" in log
    assert "region eu names GAELP_AGENT_ID GAELP_CHECKPOINT_DIR GAELP_JOB_ID GAELP_RUN HOME" in log, (
        "the agent's environment, ours for a job, and nothing of the worker's"
    )
    found = await Jobs(school.db, "t").checkpoints(job.id)
    assert found[0].step == 5
    assert done.checkpoint == "step-5.json"
    async with school.db.reading() as session:
        kept = await Measurements(session, "t").listed(school.agent_id, job_id=job.id, most=10)
    assert [one.step for one in kept] == [5, 4, 3, 2, 1]
    assert kept[0].values["loss"] == 1 / 5


async def test_a_cancelled_job_saves_itself_and_ends(school):
    job = await school.submit(10_000, config={"step_s": 0.02})
    await school.until_steps(job, 3)
    assert (await jobs.cancel(school.desk, CALLER, job.id)).state is JobState.RUNNING
    done = await school.until(job)
    assert (done.state, done.reason) == (JobState.CANCELLED, "cancelled")
    assert [what for _, what, _, _ in school.notes()] == ["begin", "asked"]
    assert (await jobs.cancel(school.desk, CALLER, job.id)).state is JobState.CANCELLED, "again is no error"


async def test_a_paused_job_goes_on_from_its_last_checkpoint(school):
    job = await school.submit(40, config={"step_s": 0.03})
    await school.until_steps(job, 3)
    await jobs.pause(school.desk, CALLER, job.id)
    paused = await school.until(job, JobState.PAUSED)
    assert paused.attempts == 0
    assert (await jobs.resume(school.desk, CALLER, job.id)).state is JobState.QUEUED
    done = await school.until(job)
    assert (done.state, done.attempts, done.starts) == (JobState.COMPLETED, 1, 2)
    begins = [step for _, what, step, _ in school.notes() if what == "begin"]
    assert begins == [0, paused.checkpoint_step]


async def test_a_failed_run_is_tried_again_from_its_checkpoint_as_often_as_the_job_says(school):
    job = await school.submit(6, config={"fails_at": 3})
    hopeless = await school.submit(6, config={"diary": "/nowhere/at/all"}, retries=1)
    done = await school.until(job)
    assert (done.state, done.attempts, done.exit_code) == (JobState.COMPLETED, 2, 0)
    assert [step for one, what, step, _ in school.notes() if (one, what) == (job.id, "begin")] == [0, 3]
    assert "exit code 3" in await school.log(job)
    failed = await school.until(hopeless)
    assert (failed.state, failed.attempts, failed.exit_code) == (JobState.FAILED, 2, 1)
    assert "FileNotFoundError" in await school.log(hopeless)


async def test_a_more_urgent_job_takes_the_place_of_a_preemptible_one_which_then_goes_on(school):
    cheap = [
        await school.submit(100_000, priority=3, preemptible=number > 0, config={"step_s": 0.05})
        for number in range(4)
    ]
    for job in cheap:
        await school.until_steps(job, 1)
    urgent = await school.submit(2, priority=9)
    assert (await school.until(urgent)).state is JobState.COMPLETED
    [preempted] = [job for job in await school.all() if job.preemptions]
    assert preempted.preemptible

    def begins():
        return [step for one, what, step, _ in school.notes() if (one, what) == (preempted.id, "begin")]

    async with asyncio.timeout(10):
        while len(begins()) < 2:
            await asyncio.sleep(0.05)
    assert (await school.find(preempted)).attempts == 1
    for job in cheap:
        await jobs.cancel(school.desk, CALLER, job.id)
    for job in cheap:
        assert (await school.until(job)).state is JobState.CANCELLED
    assert begins()[0] == 0
    assert begins()[1] > 0


async def test_a_job_that_runs_too_long_is_ended_and_fails(school):
    job = await school.submit(10_000, timeout_s=1.0, retries=5)
    done = await school.until(job)
    assert (done.state, done.reason) == (JobState.FAILED, "it ran longer than its timeout_s")


async def test_what_fits_no_worker_waits_and_keeps_nobody_up(school):
    large = await school.submit(2, priority=10, resource_requirements={"cpu": "1m", "gpu": "1"})
    small = await school.submit(2, priority=1)
    assert (await school.until(small)).state is JobState.COMPLETED
    found = await school.find(large)
    assert (found.state, found.reason) == (JobState.QUEUED, "It needs more gpu than this worker has.")
    await jobs.cancel(school.desk, CALLER, large.id)
