"""Few conductors at once, in turns where more want to."""

import pytest

from gaelp_tasks.tasks.rota import Rota


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def rota(clock):
    return Rota(most=2, turn_s=10.0, tick=lambda: clock[0])


def test_there_is_room_for_so_many_and_no_more(rota):
    assert [rota.join(name) for name in "abc"] == [True, True, False]
    rota.leave("a")
    assert rota.join("c")


def test_nobody_makes_way_while_nobody_asks(rota, clock):
    rota.join("a")
    rota.join("b")
    clock[0] += 1000
    assert not rota.makes_way("a")


def test_who_has_been_at_it_longest_makes_way_once_for_who_asks(rota, clock):
    rota.join("a")
    clock[0] += 1
    rota.join("b")
    clock[0] += 8
    rota.join("c")
    assert not rota.makes_way("a"), "not before its turn is over"
    clock[0] += 1
    assert not rota.makes_way("b")
    assert rota.makes_way("a")
    assert not rota.makes_way("a")


def test_who_asked_long_ago_asks_no_more(rota, clock):
    for name in "abc":
        rota.join(name)
    clock[0] += 11
    assert not rota.makes_way("a")
