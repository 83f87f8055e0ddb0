"""What a worker knows of the queues of models: how many wait, and since when."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.queues import SEPARATOR
from gaelp_workers.known import KnownQueues
from gaelp_workers.leases import Head
from support.fakes import Clock

REDIS: Any = None
QUEUE = "batch.m"
LOW = f"{QUEUE}{SEPARATOR}7"


class Queues:
    """Stands in for what Redis tells of queues."""

    def __init__(self) -> None:
        self.there: dict[str, Head] = {}
        self.elsewhere: set[str] = set()

    def named(self, redis: Any, since_s: float) -> tuple[set[str], set[str]]:
        return set(), self.elsewhere

    def waiting(self, redis: Any, known: Any, *, also: Any, tidy: bool) -> set[str]:
        return {name.partition(SEPARATOR)[0] for name in self.there}

    def heads(self, redis: Any, queues: Any) -> dict[str, Head]:
        return {name: head for name, head in self.there.items() if name.partition(SEPARATOR)[0] in queues}


@pytest.fixture
def clock():
    return Clock(1000.0)


@pytest.fixture
def queues():
    return Queues()


@pytest.fixture
def known(queues, clock):
    return KnownQueues(queues, lambda: ["m"], clock)


def test_a_queue_waits_since_its_oldest_message_was_published(known, queues):
    queues.there = {QUEUE: Head(2, "new", 990.0), LOW: Head(3, "old", 900.0)}
    known.look(REDIS)
    assert list(known.waiting) == [QUEUE]
    found = known.waiting[QUEUE]
    assert (found.count, found.oldest_published_at, found.oldest, found.since_s) == (5, 900.0, LOW, 900.0)


def test_what_its_sender_does_not_date_waits_since_it_was_first_seen(known, queues, clock):
    queues.there = {QUEUE: Head(1, "1", None)}
    known.look(REDIS)
    clock.advance(7)
    queues.there = {QUEUE: Head(4, "1", None)}
    known.look(REDIS)
    assert (known.waiting[QUEUE].count, known.waiting[QUEUE].since_s) == (4, 1000.0)
    queues.there = {QUEUE: Head(3, "2", None)}
    known.look(REDIS)
    assert known.waiting[QUEUE].since_s == 1007.0, "another one is next"


def test_only_the_queues_served_here_are_looked_at(known, queues, clock):
    queues.there = {QUEUE: Head(1, "1", None), "batch.any": Head(1, "2", None), "batch.x": Head(1, "3", None)}
    known.look(REDIS)
    assert {*known.waiting} == {QUEUE, "batch.any"}
    clock.advance(60)
    known.look(REDIS)
    assert "batch.x" in known.waiting, "by then it is known that nobody has it"


def test_what_comes_with_its_own_node_is_left_to_it(known, queues, clock):
    clock.advance(60)
    known.look(REDIS)
    queues.elsewhere = {"x"}  # said after our look
    known.heard("batch.x", QUEUE)
    assert known.served == [QUEUE]
    queues.there = {"batch.x": Head(1, "1", None)}
    known.look(REDIS)
    assert known.served == []


def test_what_waits_no_more_is_forgotten(known, queues):
    queues.there = {QUEUE: Head(1, "1", None)}
    known.look(REDIS)
    queues.there = {}
    known.look(REDIS)
    assert known.waiting == {}


@given(st.floats(0, 5000))
def test_nothing_waits_since_a_time_that_is_yet_to_come(published_at):
    known = KnownQueues(Queues(), lambda: ["m"], Clock(1000.0))  # type: ignore[arg-type]
    known._leases.there = {QUEUE: Head(1, "1", published_at)}  # type: ignore[attr-defined]
    known.look(REDIS)
    assert known.waiting[QUEUE].since_s == min(published_at, 1000.0)
