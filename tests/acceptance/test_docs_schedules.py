"""docs/schedules.md says what is so: its commands and its program are run, in order, on a real Redis."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gaelp_tasks import app
from gaelp_tasks.queues import lists
from support.snippets import run, snippets

PAGE = Path(__file__).parents[2] / "docs" / "schedules.md"
[PROGRAM] = snippets(PAGE)
[COMMANDS] = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)

pytestmark = [pytest.mark.redis, pytest.mark.slow]


@pytest.fixture
def place(broker, tmp_path):
    app.redis.flushdb()
    return {
        "GAELP_BROKER_URL": broker.url,
        "GAELP_DATABASE_URL": f"sqlite:///{tmp_path}/gaelp.db",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


def test_the_commands_of_the_page_do_what_it_says(place, tmp_path):
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail"],
        input=COMMANDS + "\ngaelp schedule list --json >&2",
        env=os.environ | place,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stderr[done.stderr.index("[\n") :])
    assert [(one["name"], one["cron"], one["paused"]) for one in left] == [("nightly", "30 3 * * *", False)]
    waiting = [text for name in lists("batch.any") for text in app.redis.lrange(name, 0, -1)]
    assert len(waiting) == 1
    assert left[0]["last_task"] in waiting[0]
    assert left[0]["last_task"] in done.stdout


def test_the_program_of_the_page_runs(place, tmp_path):
    assert re.match(r"20\d\d-\d\d-\d\d 06:00:00\+00:00", run(PROGRAM, tmp_path, **place))
