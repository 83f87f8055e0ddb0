"""A worker among hundreds of wrong messages; for thousands: docs/reliability.md."""

from random import Random

import pytest

from faults.mutations.capture import Captured, renamed
from faults.mutations.judge import Aftermath, judge
from faults.mutations.mutate import LEVELS, Mutant, mutate
from faults.mutations.run import run

MESSAGE = Captured(
    "batch",
    "00000000-0000",
    b'{"body": "W1tdLCB7fSwge31d", "content-type": "application/json", "content-encoding": "utf-8", '
    b'"headers": {"id": "00000000-0000", "task": "gaelp.embed"}, "properties": {"delivery_info": {}}}',
)
NOTHING = Aftermath(
    mutants=(), good=(), states={}, ended=(), dead=(), parked=(), queued=0, running=0, alive=True, restarts=0,
    leaks=(),
)  # fmt: skip


@pytest.mark.redis
def test_mutated_messages_kill_no_worker_and_each_is_accounted_for(broker, tmp_path):
    with broker.client() as store:
        store.flushall()
    verdict = run(300, 7, broker, tmp_path)
    assert verdict.broken == []
    assert set(verdict.counts) == set(LEVELS)
    assert sum(count["SUCCESS"] for count in verdict.counts.values()) > 10, "not all were hopeless"


def test_a_seed_says_what_is_mutated_and_how():
    made = [[mutate(MESSAGE.message, Random(seed)) for seed in range(200)] for _ in range(2)]
    assert made[0] == made[1]
    assert len({mutant.message for mutant in made[0]}) > 150
    assert all(mutant.message != MESSAGE.message for mutant in made[0] if mutant.level == "junk")


def test_a_captured_message_is_published_under_a_name_of_its_own():
    one, two = renamed(MESSAGE), renamed(MESSAGE)
    assert one.task_id != two.task_id
    assert one.task_id.encode() in one.message
    assert MESSAGE.task_id.encode() not in one.message


@pytest.mark.parametrize(
    ("found", "end"),
    [
        ({"states": {"00000000-0000": "SUCCESS"}}, "SUCCESS"),
        ({"states": {"00000000-0000": "STARTED"}}, "lost"),
        ({"ended": {"00000000-0000"}}, "ended"),
        ({"dead": [MESSAGE.message]}, "dead letter"),
        ({"dead": [MESSAGE.message[1:]]}, "lost"),
        ({"parked": [MESSAGE.message]}, "parked"),
        ({}, "lost"),
    ],
)
def test_the_judge_says_where_a_message_is(found, end):
    verdict = judge(Aftermath(**(vars(NOTHING) | {"mutants": [Mutant("bytes", MESSAGE.message)]} | found)))
    assert verdict.counts == {"bytes": {end: 1}}
    assert bool(verdict.broken) == (end == "lost")


def test_one_dead_letter_accounts_for_one_message():
    twice = [Mutant("junk", b"null")] * 2
    assert judge(Aftermath(**(vars(NOTHING) | {"mutants": twice, "dead": [b"null"]}))).broken != []
    assert judge(Aftermath(**(vars(NOTHING) | {"mutants": twice, "dead": [b"null"] * 2}))).broken == []


@pytest.mark.parametrize(
    "bad",
    [{"alive": False}, {"restarts": 1}, {"queued": 1}, {"running": 1}, {"good": ["a"]}, {"leaks": ["a"]}],
)
def test_the_judge_sees_what_is_broken(bad):
    assert judge(NOTHING).broken == []
    assert len(judge(Aftermath(**(vars(NOTHING) | bad))).broken) == 1
