"""Who publishes of several callers with one key, step by step."""

import json

import pytest
from celery.states import FAILURE, PENDING, REVOKED, STARTED, SUCCESS
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.errors import IdempotencyConflict
from gaelp_tasks.keys import Keys
from gaelp_tasks.models import Invocation
from gaelp_tasks.tasks.idempotency import MARGIN_S, PATIENCE_S, WAITS_S, Asking, digest_of, ended, id_of
from support.fakes import Clock, FakeBroker

KEYS = Keys("ns:")
names = st.none() | st.text(min_size=1, max_size=20)


def asked(**more) -> Invocation:
    return Invocation.parse({"prompt": "x", "idempotency_key": "k"} | more, max_prompt_bytes=10_000)


class Callers:
    """Makes callers that share a Redis, a clock that runs while they pause, and Celery's state."""

    def __init__(self):
        self.redis = FakeBroker().sync
        self.clock = Clock(0.0)
        self.status = PENDING
        self.on_pause = self.clock.advance

    def one(self, **more) -> Asking:
        return Asking(
            self.redis, KEYS, asked(**more), result_ttl_s=100.0, delay_s=10.0, status=lambda _: self.status,
            clock=self.clock, pause=self.on_pause,
        )  # fmt: skip


@pytest.fixture
def callers():
    return Callers()


@given(names, names, st.text(min_size=1), st.text(min_size=1))
def test_no_two_pairs_of_tenant_and_key_share_an_id(tenant, other_tenant, key, other_key):
    same = (tenant, key) == (other_tenant, other_key)
    assert (id_of(key, tenant) == id_of(other_key, other_tenant)) is same


def test_the_id_of_a_key_never_changes():
    assert id_of("order-4711", "shop") == "41d77b8b-57a2-59a9-985e-c8f9a13d96c5"
    assert id_of("k", None) != id_of("k", "null")


@pytest.mark.parametrize(
    ("more", "same"),
    [
        ({}, True),
        ({"agent": "chat", "priority": 5}, True),
        ({"metadata": {"trace": 1}}, True),
        ({"prompt": "y"}, False),
        ({"tier": "batch"}, False),
        ({"priority": 6}, False),
        ({"options": {"seed": 1}}, False),
        ({"deadline_s": 5.0}, False),
    ],
)
def test_what_changes_what_is_asked_for_changes_the_digest(more, same):
    assert (digest_of(asked(**more)) == digest_of(asked())) is same


def test_the_order_of_a_mapping_asks_for_nothing():
    one, other = {"seed": 1, "top_p": 0.5}, {"top_p": 0.5, "seed": 1}
    assert digest_of(asked(options=one)) == digest_of(asked(options=other))


def test_the_first_publishes_and_the_next_do_not(callers):
    first = callers.one()
    assert first.begin()
    first.done()
    assert not callers.one().begin()
    callers.status = STARTED
    assert not callers.one().begin()
    assert callers.clock() == 0.0, "nobody waited"
    life_s = callers.redis.ttl(KEYS.asked(first.id))
    assert life_s == pytest.approx(100 + WAITS_S + 10, abs=2)


@pytest.mark.parametrize("published", [True, False])
def test_another_body_is_refused_at_every_step(callers, published):
    first = callers.one()
    first.begin()
    if published:
        first.done()
    for refuse in (callers.one(prompt="SECRET").begin, callers.one(prompt="SECRET").check):
        with pytest.raises(IdempotencyConflict) as refused:
            refuse()
        assert "SECRET" not in str(refused.value)
    callers.one().check()


def test_who_finds_a_publisher_at_work_waits_for_its_mark(callers):
    first = callers.one()
    first.begin()

    def pause(seconds):
        callers.clock.advance(seconds)
        if callers.clock() > PATIENCE_S / 2:
            first.done()

    callers.on_pause = pause
    assert not callers.one().begin()
    assert callers.clock() < PATIENCE_S


def test_who_waits_for_a_dead_publisher_publishes_and_the_patience_begins_anew_for_the_next(callers):
    callers.one().begin()
    second = callers.one()
    assert second.begin()
    assert callers.clock() == pytest.approx(PATIENCE_S, abs=0.05)
    assert callers.one().begin()
    assert callers.clock() == pytest.approx(2 * PATIENCE_S, abs=0.1)


def test_a_slow_publisher_does_not_mark_what_another_is_about_to_publish(callers):
    slow, second = callers.one(), callers.one()
    slow.begin()
    assert second.begin()
    slow.done()
    assert callers.one().begin(), "had the second one died, the third must publish"


@pytest.mark.parametrize(
    ("status", "again"),
    [(FAILURE, True), (REVOKED, True), (SUCCESS, False), ("RETRY", False), (STARTED, False)],
)
def test_only_what_has_no_answer_is_published_again(callers, status, again):
    first = callers.one()
    first.begin()
    first.done()
    callers.status = status
    assert callers.one().begin() is again


def test_a_key_whose_result_is_forgotten_is_published_again(callers):
    first = callers.one()
    first.begin()
    ended(callers.redis, KEYS, first.id, result_ttl_s=100.0)
    first.done()  # the run was faster than its publisher
    place = KEYS.asked(first.id)
    assert callers.redis.ttl(place) <= 100 + MARGIN_S
    assert not callers.one().begin()
    callers.redis.expire(place, int(MARGIN_S) - 1)
    assert callers.one().begin()


def test_nothing_of_a_prompt_is_kept(callers):
    callers.one(prompt="SECRET", metadata={"a": "SECRET"}).begin()
    [place] = callers.redis.keys("*")
    assert "SECRET" not in json.dumps([place, callers.redis.get(place)])
