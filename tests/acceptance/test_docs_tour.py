"""docs/tour.md, line by line, and the whole story of an agent, on a real API, worker and model server."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gaelp_tasks.models.caller import Role
from support.api_server import ApiServer
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tour.md").read_text()
COMMANDS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(start_worker, node, newest_tables, tmp_path):
    """What `make up` keeps running, and the folder in which one types."""
    shutil.copy(newest_tables, tmp_path / "api.db")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    training = {
        "GAELP_DATABASE_URL": f"sqlite:///{tmp_path / 'api.db'}",
        "GAELP_TRAINING_DIR": str(tmp_path / "training"),
        "GAELP_TRAINING_CPUS": "4",
        "GAELP_TRAINING_MEMORY": "4GiB",
    }
    with ApiServer(tmp_path, **training) as server:
        start_worker(GAELP_OLLAMA_NODES=node, GAELP_NUM_PARALLEL="4", GAELP_OS_RESERVE="64MiB", **training)
        (tmp_path / ".run").mkdir()
        (tmp_path / ".run/api.token").write_text(server.token(Role.ADMIN, name="me") + "\n")
        yield server


def here(place, text):
    """The same at the ports of this test."""
    text = text.replace("localhost:8000", f"127.0.0.1:{place.port}")
    return text.replace("http://localhost:8080/metrics", place.metrics_url)


def typed(place, folder, *lines, **more):
    """What these lines print, typed into one shell after the other."""
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail"],
        input="\n".join(here(place, line) for line in lines),
        env=place.environment
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        | more,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def objects(text):
    """The JSON values in a text, one after the other."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while (start := re.compile(r"[\[{]").search(text, at)) is not None:
        value, at = decoder.raw_decode(text, start.start())
        found.append(value)
    return found


def test_the_tour_and_the_story_run_as_they_are_written(place, tmp_path):
    assert all("curl" in block or "python" in block for block in COMMANDS)
    first, tickets, story = COMMANDS
    page, _, metrics = typed(place, tmp_path, first).partition("# HELP")
    agent, job, recorded, status = objects(page)
    assert (agent["id"], agent["name"], agent["status"]) == (1, "campaign-optimizer-v2", "pending")
    assert (job["agent_id"], job["priority"], job["status"]) == (1, 8, "queued")
    assert isinstance(recorded, list)
    assert status["agent_counts"]["total"] == 1
    for name in ("agent_jobs_total", "agent_job_duration_seconds", "cluster_resource_usage"):
        assert f"# TYPE {name} " in metrics

    [watching] = PROGRAMS
    shown = typed(place, tmp_path, tickets, f"python - <<'END'\n{watching}\nEND")
    assert '"event":"metrics"' in shown.replace(" ", "")

    said = typed(place, tmp_path, story, GAELP_API_URL=place.url)
    told = said.splitlines()
    assert told[0] == "agent 2 campaign-optimizer-v2 is pending"
    assert "deployment 1 is running" in told
    assert any(re.match(r"call \d+: 402 ", line) for line in told), said
    assert told[-2:] == ["agent 2 is paused", "deployment 1 is stopped"]
    eventually(lambda: place.process.poll() is None)
