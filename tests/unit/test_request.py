"""A message inside the worker shows no prompt, whoever sent it."""

import json
import logging

import pytest
from celery import Celery
from celery.app.trace import build_tracer
from celery.backends.cache import CacheBackend
from kombu.message import Message

from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.invoke import invoke_agent
from gaelp_workers.request import Request

SHOWN = {"agent": "chat", "model": "m", "tier": "batch", "priority": 8}


def received(task, args, kwargs):
    """The request of a message as plain celery sends it."""
    plain = Celery("plain", set_as_current=False)
    sent = plain.amqp.as_task_v2("i", task.name, args, kwargs)
    assert "SECRET" in sent.headers["argsrepr"] + sent.headers["kwargsrepr"], "the sender gives it away"
    message = Message(
        body=json.dumps(sent.body),
        content_type="application/json",
        content_encoding="utf-8",
        headers=sent.headers,
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
