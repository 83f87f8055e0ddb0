"""The soak in its short form: every program, six of its faults; two hours: `python -m faults.soak`.

`pytest tests/faults/test_soak.py --long` is those two hours. What is flat and what grows is judged only
there; the judge itself is tried in tests/unit/test_soak_check.py.
"""

import json
import os
import subprocess
import sys

import pytest

from faults.history.probes import PATH

pytestmark = [pytest.mark.redis, pytest.mark.slow]

#: those that cost no invocation an attempt, however slow the machine is
FAULTS = ("worker-kill", "worker-term", "beat-kill", "redis-freeze", "memory-full", "database")


def soak(folder, *arguments):
    """Its exit status, what it printed, and its figures."""
    file = folder / "soak.json"
    command = [sys.executable, "-m", "faults.soak", f"--json={file}", f"--keep={folder}", *arguments]
    ended = subprocess.run(command, env=os.environ | PATH, capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stdout, json.loads(file.read_text())


@pytest.mark.timeout(300)
def test_a_small_cluster_loses_nothing_under_faults(tmp_path):
    faults = [f"--fault={name}" for name in FAULTS]
    times = ["--seconds=21", "--every=3", "--schedule=5", "--batches=8", "--rate=3"]
    status, told, found = soak(tmp_path, "--sqlite", "--workers=2", *times, *faults)
    assert {struck["fault"] for struck in found["struck"]} == set(FAULTS)
    assert found["submits"]["of"] > 40
    assert found["reads"]["of"] > found["submits"]["of"]
    assert found["schedule"]["due"] > 1
    assert len(found["batches"]) > 1
    seen = {process.partition("-")[0] for process, *_ in found["samples"]}
    assert seen == {"worker", "beat", "metrics", "redis", "redis's data"}
    assert (found["broken"], status) == ([], 0), told


@pytest.mark.timeout(10_000)
def test_two_hours_with_a_fault_every_five_minutes(request, tmp_path):
    if not request.config.getoption("--long"):
        pytest.skip("takes two hours: --long")
    status, told, _ = soak(tmp_path)
    request.config.get_terminal_writer().line(told)
    assert status == 0, told
