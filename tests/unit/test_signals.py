"""Ctrl-C and SIGTERM that are noted: none is lost, none breaks off what is under way, two do."""

import os
import select
import signal
import threading
from types import SimpleNamespace

import pytest
import typer

from gaelp_tasks.cli import top
from gaelp_tasks.cli.signals import noted_signals

both = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture(autouse=True)
def handlers():
    """Those of this process are the same afterwards."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def send(number):
    os.kill(os.getpid(), number)


@both
def test_one_that_comes_before_somebody_waits_wakes_him_at_once(number, code):
    with noted_signals() as noted:
        assert not select.select([noted.woken], [], [], 0)[0]
        send(number)
        assert select.select([noted.woken], [], [], 0)[0]
        assert noted.code == code


@both
def test_one_that_comes_while_somebody_waits_wakes_him(number, code):
    with noted_signals() as noted:
        threading.Timer(0.05, send, [number]).start()
        assert select.select([noted.woken], [], [], 20)[0]
        assert noted.code == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_asks_again_is_not_kept_waiting(number):
    with noted_signals() as noted:
        send(signal.SIGINT)
        with pytest.raises(typer.Exit) as left:
            send(number)
    assert left.value.exit_code == noted.code == 130


def test_afterwards_ctrl_c_raises_as_ever():
    with noted_signals():
        pass
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


@both
def test_top_leaves_at_its_next_look_at_the_keys(monkeypatch, number, code):
    monkeypatch.setattr(top.sys, "stdin", SimpleNamespace(isatty=lambda: False))
    with noted_signals() as noted:
        assert not top._wants_to_leave(0.01, noted)
        send(number)
        assert top._wants_to_leave(60, noted)
        assert noted.code == code
