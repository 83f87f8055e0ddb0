"""Killed between any two writes, emptied, away: what was answered 202 has one end, and nothing else has.

Short forms, for every commit; `pytest tests/faults/test_accepting.py --long -s` goes through every place, on
both databases: docs/accepted.md.
"""

import random
import time
from functools import partial

import pytest

from faults.accepted_cluster import AcceptedCluster
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(600)]

ACCEPTING = ("accept:before the commit", "accept:committed", "accept:published", "accept:marked")
RELAYING = ("relay:taken", "relay:published", "relay:before the mark", "relay:marked")
SETTLING = ("relay:before the end", "relay:settled")
NOWHERE = ("nowhere", 0)


@pytest.fixture(scope="module")
def long(request):
    return request.config.getoption("--long")


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def cluster(request, tmp_path_factory, long):
    """One worker, which lives through all tests of this module; no replica yet."""
    folder = tmp_path_factory.mktemp("accepted")
    url = f"sqlite:///{folder}/accepted.db"
    if request.param == "postgres":
        if not long:
            pytest.skip("PostgreSQL is for the long form")
        url = request.getfixturevalue("postgres").new_database()
    with AcceptedCluster(folder, url) as made:
        made.work()
        yield made


@pytest.fixture(scope="module")
def replica(cluster):
    """One that nobody kills."""
    [made] = cluster.replicas(NOWHERE)
    return made


def killed(*servers):
    return sum(server.process.poll() is not None for server in servers)


def die_accepting(cluster, servers):
    """Ask them until they are dead."""
    while killed(*servers) < len(servers):
        for server in servers:
            cluster.submit(server, 10)


def one_round(cluster, rng):
    """How many were killed. Those that accept die first; what they leave others take up, and die over it."""
    mortal = cluster.replicas(*((place, rng.randint(1, 3)) for place in ACCEPTING))
    die_accepting(cluster, mortal)
    relays = [cluster.replicas((place, 1))[0] for place in RELAYING]
    *settling, last = cluster.replicas(*((place, rng.randint(1, 2)) for place in SETTLING), NOWHERE)
    assert cluster.submit(last, 20)[202] == 20
    cluster.drain()
    last.kill()
    return killed(*mortal, *relays, *settling)


def test_who_is_killed_between_two_writes_loses_nothing_and_leaves_no_ghosts(cluster, request, long):
    if long:
        rng, rounds = random.Random(7), 3
        count = sum(one_round(cluster, rng) for _ in range(rounds))
        assert count >= 9 * rounds
    else:
        request.getfixturevalue("replica")
        places = [*((place, 2) for place in ACCEPTING[1:3]), (SETTLING[0], 1)]
        *mortal, settling = cluster.replicas(*places)
        die_accepting(cluster, mortal)
        cluster.drain()
        count = killed(*mortal, settling)
        assert count == len(places)
    told, rows = len(cluster.told), len(cluster.rows())
    print(f"\n{count} killed; of {rows} in SQL {told} were answered 202; 0 lost, 0 ghosts")  # noqa: T201  for -s


def marked(cluster, names):
    """Whether SQL knows that they were published: told 202 before that, they could be published once only."""
    rows = cluster.rows()
    return all(rows[name].publications or rows[name].is_over for name in names)


def test_an_emptied_redis_loses_nothing_that_was_accepted(cluster, replica, long):
    redis, keys = cluster.place.app.redis, cluster.place.app.keys
    for _ in range(5 if long else 1):
        before, count = set(cluster.told), 200 if long else 24
        assert cluster.submit(replica, count, words=40)[202] == count
        eventually(lambda: redis.hlen(keys.unacked))
        eventually(partial(marked, cluster, cluster.told.keys() - before))
        redis.flushall()
        began = time.monotonic()
        rows = cluster.drain(within_s=120)
        again = sum(row.publications > 1 for name, row in rows.items() if name not in before)
        took_s = time.monotonic() - began
        print(f"\nemptied: {again} of {count} again, all over {took_s:.1f} s later")  # noqa: T201  for -s
        assert again > 0


def test_while_redis_is_away_it_is_accepted_and_runs_once_that_is_back(cluster, replica):
    cluster.redis.stop()
    assert cluster.submit(replica, 10)[202] == 10
    cluster.redis.start()
    cluster.drain()


def test_of_two_replicas_one_is_killed_and_the_other_goes_on(cluster, replica, long):
    if not long:
        pytest.skip("the first test has the short form of this")
    count = 200
    [other] = cluster.replicas(NOWHERE)
    assert cluster.submit(other, count)[202] == count
    other.kill()
    assert cluster.submit(replica, count)[202] == count
    cluster.drain()
