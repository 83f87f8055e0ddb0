"""Inboxes are sorted into the queues of models, and those are found; on a real Redis."""

import pytest

from gaelp_tasks.queues import lists, place, step_of
from support.claims import KEYS, QUEUE, answer, asking, claim, message, publish, sort

pytestmark = pytest.mark.redis


def test_an_inbox_is_sorted_by_a_worker_without_room_byte_for_byte(redis, leases):
    texts = [asking("1", model="m:1b"), asking("2"), asking("3", model="m:1b", tier="background")]
    embedding = asking("4", task="gaelp.embed")
    publish(*texts, embedding)
    assert claim(leases, 0) == []
    assert sort(leases) == {"interactive.m_1b", "interactive.any", "background.m_1b", "interactive.embed"}
    usual = step_of(5)
    assert redis.lrange(lists("interactive.m_1b")[usual], 0, -1) == [texts[0]]
    assert redis.lrange(lists("background.m_1b")[usual], 0, -1) == [texts[2]]
    assert redis.lrange(lists("interactive.embed")[usual], 0, -1) == [embedding]
    assert redis.smembers(KEYS.queues) == {
        "interactive.m_1b",
        "interactive.any",
        "background.m_1b",
        "interactive.embed",
    }
    assert not redis.exists(QUEUE)


def test_two_who_sort_the_same_inbox_move_each_message_once(redis, leases):
    publish(*(asking(str(number)) for number in range(9)))
    _, unsorted, *_ = answer(leases, 0, (QUEUE,))
    places = [
        (unsorted[at], unsorted[at + 1].encode(), place(unsorted[at + 1].encode(), QUEUE))
        for at in range(0, 18, 2)
    ]
    leases.sort(places[:4])
    leases.sort(places)
    leases.sort(places)
    assert redis.llen(lists("interactive.any")[5]) + redis.llen(QUEUE) == 9
    assert claim(leases, 9, ("interactive.any",)) == [
        str(number) for number in range(redis.hlen(KEYS.unacked))
    ]


def test_what_calls_no_model_runs_from_its_inbox_around_what_waits_there(leases):
    publish(message("1"), asking("2"), message("3"))
    assert claim(leases, 9) == ["1"]
    sort(leases)
    assert claim(leases, 9) == ["3"]


def test_queues_that_hold_nothing_are_forgotten_and_others_found_unasked(redis, leases):
    redis.sadd(KEYS.queues, "batch.gone", "batch.there")
    publish(message("1"), queue=lists("batch.there")[9])
    publish(message("2"), queue=lists("batch.direct")[3])
    named, _ = leases.named(redis, 0.0)
    assert leases.waiting(redis, named, also=["batch.direct", "batch.none"], tidy=True) == {
        "batch.gone",
        "batch.there",
        "batch.direct",
    }
    assert redis.smembers(KEYS.queues) == {"batch.there"}


def test_what_redis_reads_and_python_does_not_is_refused_and_strands_nobody(redis, leases):
    """cjson takes a control character behind the document, and numbers of any length."""
    publish(asking("junk") + "\x1f", asking("good"))
    sort(leases)
    assert "good" in claim(leases, 9, ("interactive.any",))
    assert not redis.exists(QUEUE)


def test_a_key_of_another_kind_in_the_way_of_sorting_loses_nothing(redis, leases):
    publish(asking("1", model="m"), asking("2"))
    redis.set(lists("interactive.m")[5], "no list")
    sort(leases)
    assert redis.llen(QUEUE) == 1
    assert claim(leases, 9, ("interactive.any",)) == ["2"]
    assert sort(leases) == set(), "so that nobody tries again at once"


def test_a_queue_is_called_out_again_when_something_comes_back_to_it(redis, leases):
    publish(message("1"), queue=lists("batch.m")[5])
    claim(leases, 1, ("batch.m",))
    leases.give_back(*leases.held)
    assert redis.smembers(KEYS.queues) == {"batch.m"}
    redis.delete(KEYS.queues)
    claim(leases, 1, ("batch.m",))
    leases.sweep(redis, dead=["a"])
    assert redis.smembers(KEYS.queues) == {"batch.m"}
