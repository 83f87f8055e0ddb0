"""Training jobs whose processes and workers are killed: each ends once, from its last checkpoint, in order.

The short form: 8 jobs, the kill of a process and of a worker. With --long: 64 jobs through two workers with
10 killed, on SQLite and PostgreSQL, and 1,000 submits at once on one quota.
"""

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio

from gaelp_tasks.celery_app import app
from gaelp_tasks.errors import QuotaExceeded
from gaelp_tasks.models.training import JobState
from gaelp_tasks.services import job_line, jobs, quotas
from support.training import CALLER, School, environment

ROOMY = {"quota_runs": 1000, "quota_cpu_milli": 10**6, "training_max_queued": 5000}


@pytest.fixture
def long(request):
    if not request.config.getoption("--long"):
        pytest.skip("the long form: --long")


@pytest_asyncio.fixture
async def school(long, broker, sql_url, tmp_path):
    made = School(sql_url, tmp_path, **ROOMY)
    await made.open()
    yield made
    await made.close()


def stories(school):
    """Of each job the steps at which its runs began, and how often it said that it was done."""
    begins, ends = {}, Counter()
    for job, what, step, _ in school.notes():
        if what == "begin":
            begins.setdefault(job, []).append(step)
        ends[job] += what == "end"
    return begins, ends


def kill_process(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def running(school):
    """Processes that have begun and not ended, by job, that are still there."""
    now = {}
    for job, what, _, pid in school.notes():
        if what == "begin":
            now[job] = pid
        else:
            now.pop(job, None)
    return {job: pid for job, pid in now.items() if Path(f"/proc/{pid}").exists()}


async def settled(school, submitted):
    """Every job is done, and nothing is held any more."""
    # a worker that dies between the end of a run and its next message leaves that to each `gaelp api`
    upkeep = asyncio.create_task(job_line.look_after(app, school.db, school.settings))
    try:
        for job in submitted:
            done = await school.until(job, within_s=120)
            assert done.state is JobState.COMPLETED, (done, await school.log(job))
            assert done.checkpoint_step == done.config["steps"]
    finally:
        upkeep.cancel()
    begins, ends = stories(school)
    for job in submitted:
        log = await school.log(job)
        assert log.count("is over: completed.") == 1, "each was done exactly once"
        # a worker that dies between the end of a process and saying so leaves the rest of it to another run
        assert ends[job.id] == 1 or "was lost" in log
    assert len(ends) == len(submitted)
    return begins


async def test_jobs_of_killed_processes_and_of_dead_and_stopped_workers_go_on_from_their_last_checkpoint(
    broker, api_sql, start_worker, tmp_path
):
    school = School(api_sql, tmp_path, **ROOMY)
    await school.open()
    given = environment(api_sql, tmp_path, training_places=4, **ROOMY)
    dies, stops = [start_worker(name=name, **given) for name in ("one", "two")]
    held_by = tmp_path / "held"
    held_by.touch()
    config = {"step_s": 0.15, "held_by": str(held_by)}
    submitted = [await school.submit(20, priority=n + 2, config=config) for n in range(8)]
    for job in submitted:
        await school.until_steps(job, 3)
    killed = submitted[-1]
    kill_process(running(school)[killed.id])
    async with asyncio.timeout(10):
        while "killed by signal 9" not in await school.log(killed):
            await asyncio.sleep(0.05)
    stops.send(signal.SIGTERM)
    dies.process.kill()
    start_worker(name="three", **given)
    assert await asyncio.to_thread(stops.wait, within_s=15) == 0
    held_by.unlink()
    begins = await settled(school, submitted)
    for job in await school.all():
        assert job.starts >= 2, "none of them ended where it began"
        assert begins[job.id][1] >= 3
        assert job.attempts == (2 if job.id == killed.id else 1)
    held = (await quotas.show(school.db, "t", "ada", school.settings)).held
    assert held.runs == held.cpu_milli == 0
    await school.close()


@pytest.mark.timeout(570)
async def test_64_jobs_with_10_killed_all_finish_in_the_order_of_their_priority(
    long, school, start_worker, tmp_path
):
    rng = random.Random(7)
    given = environment(school.settings.database_url, tmp_path, training_places=8, training_cpus=64, **ROOMY)
    submitted = [
        await school.submit(30, priority=rng.randint(1, 10), config={"step_s": 0.1}) for _ in range(64)
    ]
    workers = [start_worker(name=name, **given) for name in ("one", "two")]
    began, killed, deadline = monotonic(), set(), monotonic() + 300
    while len(killed) < 10:
        assert monotonic() < deadline
        await asyncio.sleep(0.4)
        able = [
            (job, pid)
            for job, pid in running(school).items()
            if job not in killed and 3 <= ((await school.by_id(job)).checkpoint_step or 0) <= 12
        ]
        for job, pid in rng.sample(able, min(1, len(able))):
            kill_process(pid)
            if stories(school)[1][job] == 0:  # else it was done just before
                killed.add(job)
    workers[1].process.kill()
    workers.append(start_worker(name="three", **given))
    begins = await settled(school, submitted)
    for job in killed:
        assert len(begins[job]) >= 2, job
        assert begins[job][1] >= 3, "it went on from a checkpoint"
    for steps in begins.values():
        assert steps == sorted(steps)
    by_id = {job.id: job for job in submitted}
    order = [by_id[job].priority for job in begins]  # as they first began
    late = [
        (at, one) for at, one in enumerate(order) if any(other < one for other in order[: max(0, at - 16)])
    ]
    held = (await quotas.show(school.db, "t", "ada", school.settings)).held
    print(  # noqa: T201  its figures
        f"\n64 jobs on {school.settings.database_url.partition(':')[0]} in {monotonic() - began:.0f} s, "
        f"{len(killed)} processes and 1 worker killed, {sum(map(len, begins.values()))} runs; "
        f"first begins by priority: {order}"
    )
    assert not late, "nothing less urgent began before, but for what filled the places together"
    assert held.runs == held.cpu_milli == held.memory_bytes == 0


@pytest.mark.timeout(570)
async def test_1000_submits_at_once_never_exceed_the_quota(long, broker, sql_url, tmp_path):
    limit = {"quota_runs": 7, "quota_cpu_milli": 10_000, "training_max_queued": 900}
    app.redis.flushdb()
    school = School(sql_url, tmp_path, **limit)
    await school.open()
    most, over = 0, asyncio.Event()

    async def watch():
        nonlocal most
        while not over.is_set():
            held = (await quotas.show(school.db, "t", "ada", school.settings)).held
            assert held.runs <= 7
            assert held.cpu_milli <= 10_000
            most = max(most, held.runs)
            await asyncio.sleep(0.01)

    async def submit():
        try:
            return await school.submit(resource_requirements={"cpu": "1", "memory": "1Mi"})
        except (jobs.QueueFull, QuotaExceeded) as error:
            return error

    looking, began = asyncio.create_task(watch()), monotonic()
    told = await asyncio.gather(*(submit() for _ in range(1000)))
    took_s = monotonic() - began
    refused = [one for one in told if isinstance(one, jobs.QueueFull)]
    made = [one for one in told if not isinstance(one, Exception)]
    assert (len(made), len(refused)) == (900, 100)
    for job in made:  # each cancel lets somebody in
        await jobs.cancel(school.desk, CALLER, job.id)
    over.set()
    await looking
    assert most == 7
    held = (await quotas.show(school.db, "t", "ada", school.settings)).held
    assert held.runs == 0
    assert await job_line.upkeep(app, school.db, school.settings) == 0
    print(  # noqa: T201  its figures
        f"\n1,000 submits at once in {took_s:.1f} s: 900 in the line, 100 refused, at most {most} admitted"
    )
    await school.close()
