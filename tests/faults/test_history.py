"""The history harness, in its short form: it bites plain Celery, and our worker holds what it holds today.

The long forms and the figures: docs/reliability.md.
"""

import os
import subprocess
import sys

import pytest

from faults.history.check import Promise, broken, check
from faults.history.cluster import journal_in
from faults.history.faults import Freeze, Kill, RedisKill
from faults.history.model_server import model_server
from faults.history.probes import PATH
from faults.history.run import Plan, run
from faults.history.subjects import Ours

pytestmark = pytest.mark.redis

#: What is done, to how many tasks of how many seconds, and what our worker promises; None: nothing. A worker
#: that thaws may begin what it had claimed before, and a Redis that is killed may forget its last second.
TODAY = [
    (Kill(), 4, 200, 0.0, Promise()),
    (Freeze(6.5, 7.5), 1, 24, 1.0, Promise(again=None, needless=None)),
    (RedisKill(1.0), 2, 60, 0.2, Promise(lost=None, again=None, accepted_twice=None)),
]


def test_the_command_bites_plain_celery_runs_again_what_runs_when_its_connection_is_cut(tmp_path):
    command = [sys.executable, "-m", "faults.history", "threads", "--fault=cut", "--strikes=1", "--workers=1"]
    command += ["--tasks=4", "--slots=8", "--seconds=2", f"--keep={tmp_path}"]
    ended = subprocess.run(command, env=os.environ | PATH, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    _, row, _, *sentences = ended.stdout.splitlines()
    assert row.startswith("| plain Celery, threads | 1 cut | 4 | 0 | 0 |"), (
        "4 tasks, none lost, none stranded"
    )
    assert any(line.startswith("needless: ") for line in sentences), (
        "its repeats were the proof that we see them"
    )


@pytest.mark.parametrize(
    ("fault", "strikes", "tasks", "seconds", "promise"), TODAY, ids=[case[0].name for case in TODAY]
)
def test_our_worker_keeps_what_it_promises_today(fault, strikes, tasks, seconds, promise, broker, tmp_path):
    broker_is_empty(broker)
    plan = Plan(faults=[fault], strikes=strikes, tasks=tasks, seed=7, quiet_s=12)
    with model_server(tmp_path, journal_in(tmp_path)) as node:
        history = run(Ours(node=node, slots=4, seconds=seconds), plan, broker, tmp_path)
    findings = check(history)
    assert history.strikes == {fault.name: strikes}
    assert (findings.tasks, history.doubtful) == (tasks, frozenset())
    assert len({start.id for start in history.starts}) >= tasks - len(findings.lost), "who ran was seen"
    assert broken(findings, promise) == []


def broker_is_empty(broker):
    with broker.client() as store:
        store.flushall()
