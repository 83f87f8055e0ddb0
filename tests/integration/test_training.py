"""Training jobs in a real worker: they run, are told about, cancelled, paused, tried again, and go on."""

import pytest_asyncio

from gaelp_tasks.db.jobs import Jobs
from gaelp_tasks.models.training import JobState
from support.training import School


@pytest_asyncio.fixture
async def school(start_worker, api_sql, tmp_path):
    made = School(api_sql, tmp_path)
    await made.open()
    yield made
    await made.close()


async def test_a_job_runs_to_its_end_and_everything_of_it_is_in_sql(school, start_worker):
    start_worker(**school.environment)
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
    found = await Jobs(school.db, "t").checkpoints(job.id)
    assert found[0].step == 5
    assert done.checkpoint == "step-5.json"
