"""What waits for its time waits in Redis; a million: `python -m faults.parked` (docs/reliability.md)."""

import pytest

from faults.parked.__main__ import broken
from faults.parked.run import Finding, run

FOUND = Finding(parked=1, grown_bytes=0, redis_bytes=0, parking_s=0.0, late_s=[0.1] * 200, never=0)


@pytest.mark.redis
def test_many_parked_tasks_cost_a_worker_nothing_and_delay_no_other(broker, tmp_path):
    with broker.client() as store:
        store.flushall()
    found = run(20_000, 100, 2.0, 7, broker, tmp_path)
    assert broken(found, late_s=3.0) == [], "on a busy machine; the long form wants 1 s"
    assert (found.parked, len(found.late_s)) == (20_000, 100)


@pytest.mark.parametrize(
    "bad",
    [{"grown_bytes": 10 * 1024**2}, {"late_s": [0.1] * 197 + [1.1] * 3}, {"late_s": [-1.0]}, {"never": 1}],
)
def test_what_is_promised_is_looked_at(bad):
    assert broken(FOUND) == []
    assert len(broken(FOUND._replace(**bad))) == 1
