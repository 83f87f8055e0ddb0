"""Training jobs over HTTP: the seed's body as it is, lists, logs, verbs, refusals."""

import json
from pathlib import Path

from gaelp_tasks.db.jobs import Grip
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.training import JobState, Stream
from gaelp_tasks.services import job_runs
from gaelp_tasks.services.job_runs import Report
from gaelp_tasks.training.endings import Ending
from gaelp_tasks.training.output import Line
from support.training import NOW

BODY = (Path(__file__).parents[2] / "examples" / "job-config.json").read_bytes()
FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d @file says


async def registered(user):
    made = await user.post("/api/v1/agents", json={"name": "a", "type": "research"})
    assert made.status_code == 201, made.text
    return made.json()["id"]


async def test_the_seeds_job_is_taken_as_it_is_and_goes_its_way(api):
    user = api.as_()
    agent_id = await registered(user)
    assert agent_id == 1
    made = await user.post("/api/v1/jobs", content=BODY, headers=FORM)
    assert made.status_code == 201, made.text
    job = made.json()
    assert (job["status"], job["priority"], job["owner"]) == ("queued", 8, "user")
    assert job["resource_requirements"] == {"cpu": "1", "memory": "512Mi"}
    shown = await user.get(f"/api/v1/jobs/{job['id']}")
    assert shown.json() == job
    assert [one["id"] for one in (await user.get("/api/v1/jobs?status=queued&agent_id=1")).json()] == [
        job["id"]
    ]
    assert (await user.get("/api/v1/jobs?status=running")).json() == []
    counts = (await user.get("/api/v1/status")).json()["job_counts"]
    assert counts == {"queued": 1, "running": 0}
    assert (await user.post(f"/api/v1/jobs/{job['id']}/pause")).json()["status"] == "paused"
    assert (await user.post(f"/api/v1/jobs/{job['id']}/pause")).json()["status"] == "paused", "again"
    assert (await user.post(f"/api/v1/jobs/{job['id']}/resume")).json()["status"] == "queued"
    assert (await user.post(f"/api/v1/jobs/{job['id']}/resume")).status_code == 409
    assert (await user.post(f"/api/v1/jobs/{job['id']}/cancel")).json()["status"] == "cancelled"


async def test_its_log_is_read_in_parts_and_followed(api):
    user = api.as_()
    await registered(user)
    job = (await user.post("/api/v1/jobs", content=BODY)).json()
    at, grip = api.state, Grip(job["id"], job["task_id"], 1)
    await job_runs.begin(at.db, grip, at.settings, node="n", runner="local")
    lines = [Line(Stream.STDOUT, NOW, f"line {number}") for number in range(3)]
    await job_runs.end(at.db, grip, Ending(JobState.COMPLETED), 0, Report(lines=lines), at.settings)
    found = (await user.get(f"/api/v1/jobs/{job['id']}/logs?after=1&limit=2")).json()
    assert [(line["number"], line["text"]) for line in found] == [(2, "line 0"), (3, "line 1")]
    stream = await user.get(f"/api/v1/jobs/{job['id']}/logs?follow=true", headers={"Last-Event-ID": "3"})
    events = [part for part in stream.text.split("\n\n") if "event:" in part]
    assert [part.split("\n")[0] for part in events] == ["id: 4", "id: 5", "event: end"]
    end = json.loads(events[-1].partition("data: ")[2])
    assert end["status"] == "completed"
    assert (await user.get(f"/api/v1/jobs/{job['id']}/checkpoints")).json() == []


async def test_a_job_is_its_tenants_and_a_bad_body_is_told_why(api):
    ada, bob = api.as_(tenant="one"), api.as_(tenant="two")
    agent_id = await registered(ada)
    body = {"agent_id": agent_id, "resource_requirements": {"cpu": 1}}
    job = (await ada.post("/api/v1/jobs", json=body)).json()
    for path in ("", "/logs", "/logs?follow=true", "/checkpoints"):
        assert (await bob.get(f"/api/v1/jobs/{job['id']}{path}")).status_code == 404
    for verb in ("cancel", "pause", "resume"):
        assert (await bob.post(f"/api/v1/jobs/{job['id']}/{verb}")).status_code == 404
    assert (await bob.post("/api/v1/jobs", json=body)).status_code == 404
    assert (await bob.get("/api/v1/jobs")).json() == []
    assert len((await api.as_(Role.ADMIN).get("/api/v1/jobs")).json()) == 1
    for wrong in (
        {"priority": 11},
        {"hyperparameters": {"a-b": 1, "a_b": 2}},
        {"resource_requirements": {"cpu": "much"}},
        {"timeout_s": 0},
        {"docker_image": "Not An Image"},
        {"command": "rm"},
        {"config": {"x": "y" * 40_000}},
    ):
        refused = await ada.post("/api/v1/jobs", json=body | wrong)
        assert refused.status_code == 422, (wrong, refused.text)
    foreign = await ada.post("/api/v1/jobs", json=body | {"docker_image": "docker.io/library/x"})
    assert foreign.status_code == 403


async def test_a_job_is_stopped_and_resumed_by_its_owner_and_by_operators(api):
    user, other, operator = api.as_(), api.as_(name="other"), api.as_(Role.OPERATOR)
    await registered(user)
    place = f"/api/v1/jobs/{(await user.post('/api/v1/jobs', content=BODY)).json()['id']}"
    for verb in ("pause", "resume", "cancel"):
        assert (await other.post(f"{place}/{verb}")).status_code == 403
        assert (await operator.post(f"{place}/{verb}")).status_code == 200
    assert (await other.get(place)).json()["status"] == "cancelled"
