"""The history harness, in its short form: it bites plain Celery, and our worker holds what it holds today.

The long forms and the figures: docs/reliability.md.
"""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from faults.history.check import Promise, broken, check
from faults.history.cluster import journal_in
from faults.history.faults import Freeze, Host, Kill, Partition, RedisKill
from faults.history.model_server import model_server
from faults.history.probes import PATH
from faults.history.run import Plan, run
from faults.history.subjects import Ours

pytestmark = pytest.mark.redis

HOST_S = 7.0  #: within which what ran on a host that fell silent starts again
LEASE_S = 0.7

#: What is done to our worker, under which settings, and what it promises; None: nothing. A worker that thaws
#: may begin what it had claimed before, and a Redis that is killed may forget its last second.
TODAY: dict[str, tuple[Plan, tuple[tuple[str, str], ...], Promise]] = {
    "25 dead workers": (
        Plan(faults=[*[Kill()] * 4, Host()], strikes=25, tasks=500, seed=7),
        (),
        Promise(),
    ),
    "2 frozen workers": (
        Plan(faults=[Freeze(6.5, 7.5)], strikes=2, tasks=36, seconds=[1.0], at_once=2, workers=3, seed=7),
        (),
        Promise(again=None, needless=None, restart_p99_s=HOST_S),
    ),
    "a killed Redis and a partition": (
        Plan(faults=[RedisKill(1.0), Partition(3.0)], strikes=2, tasks=60, seconds=[0.2], seed=3),
        (),
        Promise(lost=None, again=None, accepted_twice=None),
    ),
    "tasks of ten lease times": (
        Plan(faults=[], strikes=0, tasks=8, seconds=[10 * LEASE_S], seed=7),
        (("GAELP_LEASE_TTL_S", f"{LEASE_S:g}"),),
        Promise(),
    ),
}


def test_the_command_bites_plain_celery_runs_again_what_runs_when_its_connection_is_cut(tmp_path):
    command = [sys.executable, "-m", "faults.history", "threads", "--fault=cut", "--strikes=1", "--workers=1"]
    command += ["--tasks=4", "--slots=8", "--seconds=2", f"--keep={tmp_path}"]
    ended = subprocess.run(command, env=os.environ | PATH, capture_output=True, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
    _, row, _, *sentences = ended.stdout.splitlines()
    assert row.startswith("| plain Celery, threads | 1 cut | 4 | 0 | 0 |"), (
        "4 tasks, none lost, none stranded"
    )
    assert any(line.startswith("needless: ") for line in sentences), (
        "its repeats were the proof that we see them"
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", TODAY)
def test_our_worker_keeps_what_it_promises_today(case, broker, tmp_path):
    plan, settings, promise = TODAY[case]
    plan = replace(plan, quiet_s=12)
    broker_is_empty(broker)
    with model_server(tmp_path, journal_in(tmp_path)) as node:
        history = run(Ours(node=node, slots=4, settings=settings), plan, broker, tmp_path)
    findings = check(history)
    assert sum(history.strikes.values()) == plan.strikes
    assert history.strikes.keys() == {fault.name for fault in plan.faults}, "the seed picks each"
    assert (findings.tasks, history.doubtful) == (plan.tasks, frozenset())
    assert len({start.id for start in history.starts}) >= plan.tasks - len(findings.lost), "who ran was seen"
    assert broken(findings, promise) == []
    if "freeze" in history.strikes:
        assert findings.overtaken, "there was something to refuse"


def broker_is_empty(broker):
    with broker.client() as store:
        store.flushall()
