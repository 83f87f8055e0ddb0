"""Ports that tests give to servers."""

from gaelp_tasks.demo import broker
from support.ports import free_port


def test_a_port_is_given_once_though_nobody_listens_there_yet(monkeypatch):
    ours, other = broker.free_port(), broker.free_port()
    choices = iter([ours, ours, other])
    monkeypatch.setattr(broker, "free_port", lambda: next(choices))
    assert [free_port(), free_port()] == [ours, other]
