"""Who a program says it is, where its traces go, and nothing unasked."""

import atexit
import logging
import os
import subprocess
import sys
from threading import Event

import pytest
from opentelemetry import trace

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.tracing import Seldom, finish


@pytest.fixture
def provided(monkeypatch):
    """The providers that programs of ours would have set for all of their process."""
    made = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    yield made
    for provider in made:
        provider.shutdown()


@pytest.mark.parametrize(
    ("variables", "service"),
    [
        ({}, "gaelp-beat"),
        ({"OTEL_SERVICE_NAME": "night"}, "night"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=day,zone=7"}, "day"),
    ],
)
def test_a_program_says_who_it_is_unless_somebody_has_said(
    tracing, provided, monkeypatch, variables, service
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing.export("gaelp-beat", "one")
    [provider] = provided
    assert provider.resource.attributes["service.name"] == service
    assert provider.resource.attributes["service.instance.id"] == "one"


def test_a_program_that_was_started_with_a_provider_keeps_it(tracing, provided, monkeypatch):
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: "somebody else's")
    tracing.export("gaelp-worker", "one")
    assert provided == []


def test_a_variable_that_cannot_be_right_is_refused_in_one_sentence(tracing, provided, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "-1")
    with pytest.raises(SettingsError, match=r"^GAELP_TRACES: .*OTEL_.*schedule_delay.*\.$"):
        tracing.export("gaelp-worker", "one")


def test_of_a_collector_that_is_away_the_log_tells_once_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gaelp_tasks.tracing.monotonic", lambda: now[0])
    seldom, record = Seldom(), logging.makeLogRecord({})
    passed = []
    for now[0] in (0.0, 1.0, 59.0, 61.0, 62.0):
        passed.append(seldom.filter(record))
    assert passed == [True, False, False, True, False]


def test_the_end_of_a_program_does_not_wait_for_a_collector_that_is_away():
    never = Event()
    finish(never.wait)  # or the test would hang
    never.set()


def test_traces_without_the_extra_are_refused_in_one_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "gaelp_tasks.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"^GAELP_TRACES: .*gaelp-tasks\[otel\]'\.$"):
        GaelpApp.__dict__["tracing"].func(None)


UNASKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"opentelemetry", "structlog"}:
            frame = sys._getframe(1)
            while "importlib" in frame.f_globals["__name__"]:
                frame = frame.f_back
            print(frame.f_globals["__name__"])
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
from gaelp_tasks import app, errors, invoke_agent
import gaelp_tasks.logs, gaelp_workers.app, gaelp_beat.scheduler, gaelp_tasks.cli.app
app.log.setup("INFO")
try:
    invoke_agent.delay("hi")
except errors.BrokerUnavailable:
    print("redis was asked")
"""


def test_who_asks_for_neither_traces_nor_json_needs_no_library_of_theirs():
    done = subprocess.run(
        [sys.executable, "-c", UNASKED],
        env={
            "GAELP_BROKER_URL": "redis://127.0.0.1:1/0",
            "GAELP_CONNECT_TIMEOUT_S": "1",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *askers, last = done.stdout.splitlines()
    assert last == "redis was asked", done.stderr
    # redis-py looks by itself whether they are there
    assert all(name.startswith("redis.") for name in askers), askers
