"""What our bootsteps do beside the loop, and what they leave behind when a connection is lost."""

from queue import SimpleQueue
from threading import Event
from types import SimpleNamespace
from typing import Any

from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.threads import beside
from gaelp_workers.dispatch import INVOKES, Held
from gaelp_workers.steps import make_way
from gaelp_workers.transport import Transport


class Loop:
    """Counts the timers that go on."""

    def __init__(self) -> None:
        self.going: set[Any] = set()

    def call_repeatedly(self, _seconds: float, _call: Any) -> Any:
        loop = self

        class Timer:
            def cancel(self) -> None:
                loop.going.discard(self)

        timer = Timer()
        self.going.add(timer)
        return timer


def connection(loop: Loop) -> Transport:
    made = Transport.__new__(Transport)
    made._loop = loop
    return made


def test_of_all_connections_only_the_last_one_turns_the_loop(monkeypatch):
    monkeypatch.setattr(Transport, "_turns", None)
    loop = Loop()
    for _ in range(3):
        one = connection(loop)
        one.keep_turning()
        one.keep_turning()
    assert len(loop.going) == 1


def test_what_is_done_beside_waits_for_nobody_and_ends_at_no_error():
    held, done = Event(), SimpleQueue()
    beside(held.wait, 10)
    beside(lambda: 1 / 0)
    beside(done.put, "told")
    assert done.empty()
    held.set()
    assert done.get(timeout=10) == "told"


def test_of_the_runs_asked_for_those_make_way_that_may_be_preempted_at_all(monkeypatch):
    run = Held("1", task=INVOKES, model="m", tier=Tier.BATCH)
    running = {"a": run, "b": run._replace(id="2", turn=True), "c": run._replace(id="3"), "d": Held("4")}
    stopped: list[str] = []
    monkeypatch.setattr(Transport, "leases", SimpleNamespace(running=running), raising=False)
    monkeypatch.setattr(Transport, "preempt", stopped.append, raising=False)
    make_way(iter(["1", "2", "4", "gone"]))
    assert stopped == ["a"]
