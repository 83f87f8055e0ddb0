"""A message inside the worker shows no prompt, whoever sent it."""

import json
import logging
from time import monotonic
from types import SimpleNamespace

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.app.trace import build_tracer
from celery.backends.cache import CacheBackend
from celery.worker import state
from kombu.message import Message

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.errors import NodeFailed
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.invoke import invoke_agent
from gaelp_workers.request import Request

SHOWN = {"agent": "chat", "model": "m", "tier": "batch", "priority": 8}


def received(task, args, kwargs, **headers):
    """The request of a message as plain celery sends it."""
    plain = Celery("plain", set_as_current=False)
    sent = plain.amqp.as_task_v2("i", task.name, args, kwargs)
    assert "SECRET" in sent.headers["argsrepr"] + sent.headers["kwargsrepr"], "the sender gives it away"
    message = Message(
        body=json.dumps(sent.body),
        content_type="application/json",
        content_encoding="utf-8",
        headers=sent.headers | headers,
        properties=sent.properties,
        delivery_info={"exchange": "", "routing_key": "batch"},
    )
    return Request(message, app=app, task=task)


CALLS = [
    (invoke_agent, ["SECRET"], {}),
    (invoke_agent, [], {"prompt": "SECRET"}),
    (invoke_agent, [], {"prompt": "SECRET"} | SHOWN),
    (invoke_agent, [], {"messages": [{"role": "user", "content": "SECRET"}], "metadata": {"k": "SECRET"}}),
    (embed, [["SECRET"]], {"tier": "batch"}),
]
calls = pytest.mark.parametrize(("task", "args", "kwargs"), CALLS, ids=range(len(CALLS)))


@calls
def test_log_events_and_inspect_show_no_prompt(task, args, kwargs):
    request = received(task, args, kwargs)
    shown = [
        str(request), repr(request), request.humaninfo(), request.argsrepr, request.kwargsrepr,
        str(request.info()), str(request.info(safe=True)),
        request.request_dict["argsrepr"], request.request_dict["kwargsrepr"],
    ]  # fmt: skip
    assert not [text for text in shown if "SECRET" in text]


@calls
def test_the_task_still_gets_its_arguments(task, args, kwargs):
    request = received(task, args, kwargs)
    assert (request.args, request.kwargs) == (args, kwargs)


def test_the_summary_shows_what_is_no_prompt():
    request = received(invoke_agent, [], {"prompt": "SECRET"} | SHOWN)
    assert request.kwargsrepr == "agent=chat model=m tier=batch priority=8"
    assert request.info()["kwargs"] == request.kwargsrepr
    assert request.info()["id"] == "i"


class Listening:
    """Keeps every event."""

    enabled = True

    def __init__(self):
        self.heard = []

    def send(self, kind, **fields):
        self.heard.append((kind, fields))


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("SECRET"), "ValueError(...)"),
        (KeyError('SECRET\n  File "SECRET'), "KeyError(...)"),
        (NodeFailed("The node is out of order."), "NodeFailed('The node is out of order.')"),
    ],
)
def test_an_event_tells_the_kind_of_a_failure_and_where_but_no_text(error, shown, monkeypatch):
    def fail(secret):
        raise error

    try:
        fail("SECRET")
    except type(error):
        told = ExceptionInfo()
    monkeypatch.setattr(GaelpApp, "backend", CacheBackend(app=app, backend="memory"))
    request = received(invoke_agent, ["SECRET"], {})
    request._eventer = Listening()
    request.on_failure(told, return_ok=True)
    [(kind, fields)] = request._eventer.heard
    assert (kind, fields["exception"]) == ("task-failed", shown)
    assert "test_request.py" in fields["traceback"]
    assert "in fail" in fields["traceback"]
    assert "SECRET" not in str(fields)


@pytest.fixture
def revocations():
    """What this worker was told to revoke."""
    yield state
    state.revoked.clear()
    state.revoked_stamps.clear()


@pytest.mark.parametrize(
    ("ids", "stamps", "recalled"),
    [
        ((), {}, False),
        (("other",), {"job": ["two"], "run": ["one"]}, False),
        (("i",), {}, True),
        ((), {"job": ["zero", "one"]}, True),
        ((), {"job": "one"}, True),
    ],
)
def test_what_was_revoked_is_known_and_runs_all_the_same(revocations, ids, stamps, recalled):
    """Private: _already_revoked, maybe_expire."""
    request = received(invoke_agent, ["SECRET"], {}, stamped_headers=["job"], stamps={"job": ["one"]})
    revocations.revoked.update(ids)
    revocations.revoked_stamps.update(stamps)
    assert request.recalled is recalled
    assert request.revoked() is False


@pytest.mark.parametrize("recalled", [True, False])
def test_a_revoked_one_is_stopped_as_it_takes_its_seat(revocations, monkeypatch, recalled):
    stopped = []
    at = SimpleNamespace(runs=SimpleNamespace(stop=lambda *asked: stopped.append(asked)))
    monkeypatch.setattr("gaelp_workers.request.shared_resources", lambda: at)
    revocations.revoked.update(["i"] if recalled else [])
    request = received(invoke_agent, ["SECRET"], {})
    request.on_accepted(1, monotonic())
    state.task_ready(request)
    assert stopped == ([("i", Reason.USER)] if recalled else [])


def test_what_has_expired_is_discarded(revocations, monkeypatch):
    monkeypatch.setattr("celery.backends.cache._DUMMY_CLIENT_CACHE", {})  # other tests have an «i», too
    monkeypatch.setattr(GaelpApp, "backend", CacheBackend(app=app, backend="memory"))
    request = received(invoke_agent, ["SECRET"], {}, expires="2001-01-01T00:00:00+00:00")
    assert request.revoked() is True
    assert request.revoked() is True
    assert app.backend.get_task_meta("i")["status"] == "REVOKED"
    assert request.acknowledged
    assert "i" not in revocations.revoked, "its id may be asked for again"


def test_limits_set_from_afar_hold_where_the_call_names_none(monkeypatch):
    """Private: time_limits; Celery's own request keeps those of its start."""
    monkeypatch.setattr(invoke_agent, "time_limit", 40.0)
    monkeypatch.setattr(invoke_agent, "soft_time_limit", 30.0)
    assert received(invoke_agent, ["SECRET"], {}).time_limits == (40.0, 30.0)
    assert received(invoke_agent, ["SECRET"], {}, timelimit=[4.0, None]).time_limits == (4.0, 30.0)


@calls
def test_the_log_of_a_failed_run_holds_no_prompt(task, args, kwargs, monkeypatch, caplog):
    monkeypatch.setattr(GaelpApp, "backend", CacheBackend(app=app, backend="memory"))
    monkeypatch.setattr(task, "run", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(task, "__call__", None, raising=False)
    request = received(task, args, kwargs)
    trace = build_tracer(task.name, task, app=app, hostname="h")
    with caplog.at_level(logging.INFO):
        trace(request.id, request.args, request.kwargs, request.request_dict)
    assert "ZeroDivisionError" in caplog.text
    assert "SECRET" not in caplog.text
    assert not [record for record in caplog.records if "SECRET" in str(vars(record).get("data"))]
