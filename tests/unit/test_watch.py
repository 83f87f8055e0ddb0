"""When a worker that hears nothing connects anew, and when it ends."""

import pytest

from gaelp_workers.watch import Hearing, Verdict

EVERY_S, DEAF_S, LOST_S = 1.0, 10.0, 60.0
WELL, RECONNECT, INTERRUPT, END, LOST = Verdict


@pytest.fixture
def hearing():
    return Hearing(0.0, every_s=EVERY_S, deaf_s=DEAF_S, lost_s=LOST_S)


def verdicts(hearing, *, begin, end, **told):
    """What it says each second from `begin` up to `end`, the quiet ones left out."""
    told = {"answered": True, "wants": True, "polled_at": 0.0} | told
    found = {now: hearing.look(float(now), **told) for now in range(begin, end)}
    return {now: verdict for now, verdict in found.items() if verdict is not WELL}


def test_silence_while_redis_answers_others_is_answered_step_by_step(hearing):
    assert verdicts(hearing, begin=1, end=100) == {11: RECONNECT, 21: INTERRUPT, 61: END}


def test_a_claim_that_is_answered_begins_it_anew(hearing):
    assert verdicts(hearing, begin=1, end=16) == {11: RECONNECT}
    assert verdicts(hearing, begin=16, end=30, polled_at=15.5) == {26: RECONNECT}


def test_a_full_worker_claims_nothing_and_is_not_deaf(hearing):
    assert verdicts(hearing, begin=1, end=100, wants=False) == {}
    assert verdicts(hearing, begin=100, end=111) == {110: RECONNECT}


def test_a_redis_that_is_away_makes_nobody_deaf(hearing):
    assert verdicts(hearing, begin=1, end=50, answered=False) == {}
    assert verdicts(hearing, begin=50, end=60) == {}, "ten seconds from its return on"


def test_redis_away_for_long_is_lost_and_short_losses_do_not_add_up(hearing):
    for begin in range(1, 500, 50):
        assert verdicts(hearing, begin=begin, end=begin + 45, answered=False) == {}
        assert verdicts(hearing, begin=begin + 45, end=begin + 50) == {}
    assert min(verdicts(hearing, begin=501, end=600, answered=False)) == 561


def test_zero_never_gives_redis_up():
    hearing = Hearing(0.0, every_s=EVERY_S, deaf_s=DEAF_S, lost_s=0.0)
    assert verdicts(hearing, begin=1, end=10_000, answered=False) == {}


@pytest.mark.parametrize("answered", [True, False])
def test_a_paused_process_has_missed_nothing(hearing, answered):
    """SIGSTOP, or a sleeping machine: its silence was its own."""
    verdicts(hearing, begin=1, end=5)
    assert hearing.look(1000.0, answered=answered, wants=True, polled_at=4.0) is WELL
