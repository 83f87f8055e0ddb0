"""The line of training jobs in SQL, on both databases: bounded, admitted by quotas, paid, found again."""

import asyncio
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from gaelp_tasks import failpoints
from gaelp_tasks.celery_app import app
from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.budgets import Budgets
from gaelp_tasks.db.jobs import Grip, Jobs
from gaelp_tasks.errors import BudgetExceeded, Conflict, NotFound, QueueFull, QuotaExceeded
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.money import Owner, OwnerKind
from gaelp_tasks.models.training import Checkpoint, JobState, Stream, Wish
from gaelp_tasks.queues import TRAINING, lists
from gaelp_tasks.services import budgets, job_line, job_runs, jobs, quotas
from gaelp_tasks.services.job_runs import Overtaken, Report
from gaelp_tasks.training.endings import Ending
from gaelp_tasks.training.output import Line
from support.training import CALLER, NOW, School

COMPLETED = Ending(JobState.COMPLETED)


@pytest_asyncio.fixture
async def school(redis, sql_url, tmp_path):
    made = School(sql_url, tmp_path, quota_runs=2, quota_cpu_milli=1000, training_max_queued=5)
    await made.open()
    yield made
    await made.close()


async def begun(school, job, claim=1):
    grip = Grip(job.id, job.task_id, claim)
    taken = await job_runs.begin(school.db, grip, school.settings, node="n", runner="local")
    return grip, taken


async def ended(school, grip, ending=COMPLETED, code=0):
    return await job_runs.end(school.db, grip, ending, code, Report(), school.settings)


async def held(school):
    return (await quotas.show(school.db, "t", "ada", school.settings)).held


async def budget_of(school, owner):
    [found] = await Budgets(school.db, "t").find(owner, now=NOW)
    return found


def queued():
    return [app.redis.llen(name) for name in lists(TRAINING)]


async def test_jobs_wait_for_their_owners_quota_and_come_in_the_order_of_their_priority(school):
    first, second, third, fourth = [await school.submit(priority=priority) for priority in (5, 5, 3, 8)]
    assert (await held(school)).runs == 2
    assert sum(queued()) == 2, "only what is admitted is published"
    assert "enough runs" in (await school.find(fourth)).reason
    grip, _ = await begun(school, first)
    _, calls = await ended(school, grip)
    assert [call.job_id for call in calls] == [fourth.id], "the more urgent one"
    assert (await held(school)).runs == 2
    await jobs.cancel(school.desk, CALLER, second.id)
    assert (await school.find(third)).reason == ""
    assert sum(queued()) == 3, "what was cancelled comes to nothing when it is claimed"
    for job in (third, fourth):
        await jobs.cancel(school.desk, CALLER, job.id)
    assert (await held(school)).runs == 0


async def test_what_never_fits_is_refused_and_so_is_what_finds_the_line_full(school):
    with pytest.raises(QuotaExceeded, match="never fit"):
        await school.submit(resource_requirements={"cpu": "2"})
    for _ in range(5):
        await school.submit()
    with pytest.raises(QueueFull) as caught:
        await school.submit()
    assert caught.value.retry_after_s > 0
    assert len(await school.all()) == 5


async def test_a_job_of_another_tenant_is_not_there(school):
    job = await school.submit()
    other = Caller(name="ada", tenant="u")
    for verb in (jobs.find, jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(NotFound):
            await verb(school.desk, other, job.id)
    with pytest.raises(NotFound):
        await school.submit(caller=other)
    assert await Jobs(school.db, "u").listed() == []
    assert await Jobs(school.db, "u").counts() == {}
    assert await Jobs(school.db, "t").counts() == {"queued": 1}


async def test_training_a_simulation_agent_is_paid_by_its_user_and_not_by_its_own_budget(school):
    user, tested = Owner(OwnerKind.USER, "ada"), await school.enrol(type="simulation")
    own = Owner(OwnerKind.AGENT, str(tested))
    async with school.db.writing() as session:
        for owner, limit_micro in ((user, 1000), (own, 0)):
            await budgets.set_budget(session, owner, limit_micro, tenant="t", by="x", now=NOW)
    asked = {"agent_id": tested, "resource_requirements": {"cpu": "500m"}}
    with pytest.raises(BudgetExceeded):
        await school.submit(timeout_s=201, **asked)
    await school.submit(timeout_s=200, **asked)
    assert (await budget_of(school, user)).held_micro == 1000
    assert (await budget_of(school, own)).held_micro == 0


async def test_what_a_job_may_cost_is_held_and_what_it_ran_is_paid(school):
    owner = Owner(OwnerKind.USER, "ada")
    async with school.db.writing() as session:
        await budgets.set_budget(session, owner, 1000, tenant="t", by="x", now=NOW)
    with pytest.raises(BudgetExceeded):
        await school.submit(timeout_s=201, resource_requirements={"cpu": "500m"})
    assert (await held(school)).runs == 0, "nothing of it is left"
    job = await school.submit(timeout_s=200, resource_requirements={"cpu": "500m"})
    budget = await budget_of(school, owner)
    assert (budget.held_micro, budget.available_micro) == (1000, 0)
    grip, _ = await begun(school, job)
    await asyncio.sleep(0.05)
    done, _ = await ended(school, grip)
    budget = await budget_of(school, owner)
    assert budget.held_micro == 0
    assert budget.spent_micro == pytest.approx(done.ran_s * 5, abs=2)


async def test_a_zombies_writes_are_refused(school):
    job = await school.submit(retries=0)
    old, _ = await begun(school, job, claim=1)
    new, taken = await begun(school, job, claim=2)
    assert taken.job is not None
    assert taken.job.attempts == 1, "the death of a worker spends none"
    assert (await begun(school, job, claim=1))[1].job is None, "it stood still before it began"
    with pytest.raises(Overtaken):
        await job_runs.tell(school.db, old, Report(), school.settings)
    with pytest.raises(Overtaken):
        await ended(school, old)
    assert (await ended(school, new))[0].state is JobState.COMPLETED
    with pytest.raises(Overtaken):
        await ended(school, new)
    assert (await held(school)).runs == 0


async def test_a_job_whose_workers_die_again_and_again_without_progress_fails(school):
    job = await school.submit()
    most = school.settings.poison_deaths
    for claim in range(1, most + 1):
        grip, taken = await begun(school, job, claim)
        assert taken.job is not None
    await job_runs.tell(
        school.db, grip, Report(checkpoints=[Checkpoint("step-1", 5, 1, NOW)]), school.settings
    )
    for claim in range(most + 1, 2 * most):
        assert (await begun(school, job, claim))[1].job is not None, "progress forgives"
    assert (await begun(school, job, 2 * most))[1].job is None
    failed = await school.find(job)
    assert failed.state is JobState.FAILED
    assert (await held(school)).runs == 0


async def test_of_the_checkpoints_of_a_job_the_newest_are_kept_in_the_order_of_their_steps(school):
    job, other = await school.submit(), await school.submit()
    for one, steps in ((other, range(1)), (job, range(50))):
        grip, _ = await begun(school, one)
        for first in steps[::10]:
            there = [Checkpoint(f"step-{step}", 5, step, NOW) for step in steps[first : first + 10]]
            await job_runs.tell(school.db, grip, Report(checkpoints=there), school.settings)
    last = Report(checkpoints=[Checkpoint("last", 5, None, NOW)])
    await job_runs.tell(school.db, grip, last, school.settings)
    found = await jobs.checkpoints(school.desk, CALLER, job.id, limit=1000)
    assert [one.step for one in found] == [*range(49, 29, -1)]
    part = await jobs.checkpoints(school.desk, CALLER, job.id, skip=2, limit=3)
    assert [one.step for one in part] == [47, 46, 45]
    assert [one.step for one in await jobs.checkpoints(school.desk, CALLER, other.id)] == [0]


async def test_wishes_reach_a_run_and_count_where_it_would_go_on(school):
    job = await school.submit()
    grip, _ = await begun(school, job)
    await jobs.pause(school.desk, CALLER, job.id)
    assert (await job_runs.tell(school.db, grip, Report(), school.settings))[0] is Wish.PAUSE
    await ended(school, grip, Ending(JobState.QUEUED, "its worker stopped", spends=False, gives_back=True))
    assert (await school.find(job)).state is JobState.PAUSED
    assert (await held(school)).runs == 0
    with pytest.raises(Conflict):
        await jobs.pause(school.desk, CALLER, (await _completed(school)).id)
    await jobs.resume(school.desk, CALLER, job.id)
    with pytest.raises(Conflict):
        await jobs.resume(school.desk, CALLER, job.id)
    assert (await held(school)).runs == 1


async def _completed(school):
    job = await school.submit()
    grip, _ = await begun(school, job)
    return (await ended(school, grip))[0]


async def test_a_wish_that_a_dead_worker_has_not_fulfilled_is_when_its_message_comes_again(school):
    job = await school.submit()
    await begun(school, job)
    await jobs.cancel(school.desk, CALLER, job.id)
    assert (await begun(school, job, claim=2))[1].job is None
    assert (await school.find(job)).state is JobState.CANCELLED
    assert (await held(school)).runs == 0


async def test_a_log_is_numbered_over_all_runs_and_keeps_its_newest_lines(school):
    settings = school.settings.model_copy(update={"training_log_lines": 100})
    job = await school.submit()
    grip, _ = await begun(school, job)
    for piece in range(5):
        lines = [Line(Stream.STDOUT, NOW, f"{piece} {number}") for number in range(60)]
        await job_runs.tell(school.db, grip, Report(lines=lines), settings)
    found = await Jobs(school.db, "t").logs(job.id)
    assert 100 <= len(found) < 200
    assert found[-1].text == "4 59"
    numbers = [line.number for line in found]
    assert numbers == list(range(numbers[0], 302))
    assert [line.number for line in await Jobs(school.db, "t").logs(job.id, after=299)] == [300, 301]


async def test_what_redis_has_lost_is_published_again_and_the_old_message_is_void(school, monkeypatch):
    monkeypatch.setattr(job_line, "UNSEEN_S", 0.0)
    lost, runs = await school.submit(priority=2), await school.submit()
    grip, _ = await begun(school, runs)
    assert await job_line.upkeep(app, school.db, school.settings) == 0, "they are there"
    app.redis.flushdb()
    assert await job_line.upkeep(app, school.db, school.settings) == 2
    assert await job_line.upkeep(app, school.db, school.settings) == 0
    assert [len(list(filter(None, queued()))), sum(queued())] == [2, 2]
    assert (await begun(school, lost, claim=7))[1].job is None, "its message is another one now"
    again = await school.find(lost)
    assert (await begun(school, again))[1].job is not None
    with pytest.raises(Overtaken):
        await ended(school, grip)


async def test_the_jobs_of_a_terminated_agent_end(school):
    runs, waits = await school.submit(), await school.submit()
    grip, _ = await begun(school, runs)
    async with school.db.writing() as session:
        assert await job_line.dismiss(session, school.agent_id, school.settings, NOW) == 2
    assert (await school.find(waits)).state is JobState.CANCELLED
    assert (await job_runs.tell(school.db, grip, Report(), school.settings))[0] is Wish.CANCEL
    assert (await held(school)).runs == 1, "until it has ended"


async def test_the_time_that_a_job_ran_is_told_to_the_millisecond(school):
    job = await school.submit()
    async with school.db.writing() as session:
        row = await Jobs(school.db, "t").row(session, job.id)
        row.ran_s = 10.419721000000001
    assert (await school.find(job)).wire()["ran_s"] == 10.42


async def moved(school, state):
    async with school.db.writing() as session:
        (await Agents(session, "t").row(school.agent_id, lock=True)).state = state


async def test_the_jobs_of_a_paused_agent_wait_until_it_runs_again(school):
    job, set_aside = await school.submit(), await school.submit()
    await jobs.pause(school.desk, CALLER, set_aside.id)
    await moved(school, "paused")
    grip, taken = await begun(school, job)
    assert taken.job is None
    later_s = (taken.wait_until - datetime.now(UTC)).total_seconds()
    [call] = await job_runs.postpone(school.db, grip, "", later_s)
    waits = await school.find(job)
    assert (waits.state, waits.reason) == (JobState.QUEUED, "It waits: its agent is paused.")
    assert waits.attempts == waits.starts == 0
    with pytest.raises(Conflict, match="is paused: its jobs go on once it is running again"):
        await jobs.resume(school.desk, CALLER, set_aside.id)
    assert (await school.find(set_aside)).state is JobState.PAUSED
    await moved(school, "running")
    assert call.task_id == waits.task_id, "its message comes again by itself"
    assert (await begun(school, waits))[1].job.reason == ""
    assert (await jobs.resume(school.desk, CALLER, set_aside.id)).state is JobState.QUEUED


@pytest.mark.parametrize("place", ["jobs:committed", "jobs:published"])
async def test_who_dies_round_the_publishing_leaves_one_message_in_the_end(school, place, monkeypatch):
    def die():
        raise RuntimeError(place)

    failpoints.arm(place, die)
    with pytest.raises(RuntimeError):
        await school.submit()
    failpoints.arm(place, lambda: None)
    assert sum(queued()) == (place == "jobs:published")
    monkeypatch.setattr(job_line, "UNSEEN_S", 0.0)
    for _ in range(2):
        await job_line.upkeep(app, school.db, school.settings)
        assert sum(queued()) == 1
    [job] = await school.all()
    assert (await begun(school, job))[1].job is not None


async def test_old_jobs_are_thrown_away_with_all_that_is_theirs(school):
    job = await _completed(school)
    stays = await school.submit()
    assert await job_runs.prune(school.db, NOW) == []
    [gone] = await job_runs.prune(school.db, datetime.now(UTC))
    assert gone.id == job.id
    assert [one.id for one in await school.all()] == [stays.id]
    assert await Jobs(school.db, None).logs(job.id) == []
