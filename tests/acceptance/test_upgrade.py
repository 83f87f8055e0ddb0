"""Workers of two releases on one Redis, as in the middle of an upgrade; and messages of a release to come."""

import asyncio
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.models import ENVELOPE_VERSION
from gaelp_tasks.overview import describe
from support.eventually import eventually
from support.scripted_server import Reply, Request, ScriptedServer
from support.worker import WorkerProcess

pytestmark = [pytest.mark.redis]

ROOT = Path(__file__).parents[2]
LAST_RELEASE = "b5355f8"  #: the first whose workers claim and hold leases
PARTS = ("gaelp_tasks", "workers", "beat")
QUICK = {"GAELP_RETRY_BASE_S": "0.05", "GAELP_SNOOZE_S": "0.05", "GAELP_DEFAULT_MODEL": "tiny"}
CALLS = """
import json, sys
from gaelp_tasks import invoke_agent
name = sys.argv[1]
told = {"plain": [], "chained": [], "retried": [], "cancelled": []}
for n in range(8):
    told["plain"].append(invoke_agent.delay(f"plain {name} {n}.").id)
    first = invoke_agent.s(f"first {name} {n}.") | invoke_agent.s()
    last = first.delay()
    told["chained"] += [last.parent.id, last.id]
    told["retried"].append(invoke_agent.delay(f"fail {name} {n}.").id)
    gone = invoke_agent.delay(f"wait {name} {n}.", tier="background")
    gone.cancel()
    told["cancelled"].append(gone.id)
print(json.dumps(told))
"""


@pytest.fixture(scope="session")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the last release's code."""
    asked = subprocess.run(
        ["git", "archive", LAST_RELEASE, *PARTS], cwd=ROOT, capture_output=True, check=False
    )
    if asked.returncode:
        pytest.skip(f"the history is not here to take the last release from: {asked.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("last-release")
    with tarfile.open(fileobj=BytesIO(asked.stdout)) as archive:
        # the filter came with 3.11.4; what is in here is our own
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # noqa: S202  our own
    return folder


def beside(folder: Path) -> dict[str, str]:
    """What makes a program there import its own code."""
    return {"PYTHONPATH": os.pathsep.join(str(folder / part) for part in (".", "workers", "beat"))}


def published(folder: Path, name: str) -> dict[str, list[str]]:
    """Ids of what the code in that folder publishes."""
    env = os.environ | {"GAELP_BROKER_URL": app.settings.broker_url} | beside(folder)
    look = "import gaelp_tasks; print(gaelp_tasks.__file__)"
    for code in (look, CALLS):
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if code is look:
            assert Path(done.stdout.strip()).is_relative_to(folder)
    return json.loads(done.stdout)


async def test_nothing_is_lost_run_twice_or_failed_by_workers_of_two_releases(
    start_worker: Callable[..., WorkerProcess], last_release: Path
):
    asked: Counter[str] = Counter()

    async def answer(request: Request, reply: Reply) -> None:
        prompt = request.json()["messages"][-1]["content"]
        asked[prompt] += 1
        if prompt.startswith("fail") and asked[prompt] == 1:
            reply.whole({"error": "out of order"}, 500)
            return
        reply.head()
        if prompt.startswith("wait"):  # taken before it was cancelled
            await reply.gone.wait()
        reply.token(f"answer to {prompt}")
        reply.last(eval_count=1)
        reply.end()

    async with ScriptedServer() as node:
        node.on("/api/chat", answer)
        settings = QUICK | {"GAELP_OLLAMA_NODES": node.url, "GAELP_NUM_PARALLEL": "2"}
        told = [
            await asyncio.to_thread(published, folder, name)
            for folder, name in ((last_release, "old"), (ROOT, "new"))
        ]
        old = settings | beside(last_release) | {"name": "old", "cwd": last_release}
        workers = await asyncio.gather(
            asyncio.to_thread(start_worker, **old),
            asyncio.to_thread(start_worker, name="new", **settings),
        )
        told += [
            await asyncio.to_thread(published, folder, name)
            for folder, name in ((last_release, "old again"), (ROOT, "new again"))
        ]
        results: dict[str, Any] = {}
        for kind in told[0]:
            for name in (name for one in told for name in one[kind]):
                results[name] = await asyncio.to_thread(invoke_agent.AsyncResult(name).get, timeout=60)
                attempts = {"retried": 2}.get(kind, 1)
                stop_reason = "cancelled" if kind == "cancelled" else "stop"
                assert (results[name]["attempts"], results[name]["stop_reason"]) == (attempts, stop_reason)
    twice = {prompt: count for prompt, count in asked.items() if count != 1 + prompt.startswith("fail")}
    assert not twice
    assert len([prompt for prompt in asked if not prompt.startswith("wait")]) == 4 * 8 * 4
    await asyncio.to_thread(eventually, lambda: app.redis.hlen(app.keys.unacked) == 0)
    assert app.redis.zcard(app.keys.dead) == 0
    for worker in workers:
        assert "succeeded" in worker.log(), f"{worker.name} has taken its share"


async def test_a_message_of_a_later_release_waits_for_a_worker_that_knows_it(
    start_worker: Callable[..., WorkerProcess],
):
    def of_version(version: int) -> Any:
        return invoke_agent.apply_async(["Hi"], headers={"gaelp_version": version})

    async with ScriptedServer() as node:
        settings = QUICK | {"GAELP_OLLAMA_NODES": node.url, "GAELP_SNOOZE_S": "0.2"}
        worker = await asyncio.to_thread(start_worker, **settings)
        later, ours = of_version(ENVELOPE_VERSION + 1), of_version(ENVELOPE_VERSION)
        assert (await asyncio.to_thread(ours.get, timeout=20))["attempts"] == 1
        await asyncio.to_thread(
            eventually, lambda: int(app.redis.get(app.keys.claims(later.id)) or 0) > 1, what="taken twice"
        )
        await asyncio.to_thread(eventually, lambda: app.redis.zscore(app.keys.parked, later.id))
        told = describe(app, later.id)
        assert told.state == "waiting"
        assert f"envelope version {ENVELOPE_VERSION + 1} is newer than {ENVELOPE_VERSION}" in told.why
        assert later.state == "PENDING"
        assert len(node.asked("/api/chat")) == 1, "the other one"
        assert "Put off" in worker.log()
        # the worker of the release to come
        await asyncio.to_thread(
            start_worker,
            "--include",
            "support.next_release",
            name="next",
            PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH")))),
            **settings,
        )
        assert (await asyncio.to_thread(later.get, timeout=60))["attempts"] == 1
