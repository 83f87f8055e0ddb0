"""Ends that workers tell, rows of the history, and the command that shows them."""

import json
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError
from typer.testing import CliRunner

from gaelp_tasks import app, endings
from gaelp_tasks.cli.app import cli
from gaelp_tasks.db.history import History
from gaelp_tasks.models.ending import Ending

NOON = datetime(2026, 1, 22, 12, tzinfo=UTC)


def end(name, **changed):
    facts = {
        "id": name,
        "task": "gaelp.invoke_agent",
        "state": "done",
        "stop_reason": "stop",
        "tier": "batch",
    }
    return Ending(**(facts | {"priority": 5, "agent": "chat", "model": "m:1b", "claims": 1} | changed))


def row(name, *, ended_s=0.0, **changed):
    return end(name, **changed).columns() | {"finished_at": NOON + timedelta(seconds=ended_s)}


def set_to(monkeypatch, **settings):
    monkeypatch.setitem(app.__dict__, "settings", app.settings.model_copy(update=settings))


def tell(redis, *ends):
    for one in ends:
        endings.tell(redis, app.keys, one)


def rows_in(loop, db):
    return {one.id: one.state for one in loop.run(History(db, None).listed(most=10_000))}


def gaelp(*words):
    done = CliRunner().invoke(cli, ["history", *words])
    assert not isinstance(done.exception, SQLAlchemyError | AttributeError | TypeError), done.exception
    return done


def listed(*words):
    done = gaelp(*words, "--json")
    assert done.exit_code == 0, done.output
    return [one["id"] for one in json.loads(done.stdout)]
