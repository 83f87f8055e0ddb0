"""Which invocations a filter means, read from their messages alone."""

import base64
import json
from collections import Counter

import pytest
from celery import Celery
from kombu.utils.json import dumps
from typer.testing import CliRunner

from gaelp_tasks import roundup
from gaelp_tasks.cli.app import cli
from gaelp_tasks.roundup import STATES, Facts, Filter, facts_of

FACTS = Facts("i", "batch", "batch", "chat", "m", "t", 1000.0)


def message(task="gaelp.invoke_agent", args=("SECRET",), encoded=True, **kwargs) -> bytes:
    """As plain celery sends it."""
    sent = Celery("plain", set_as_current=False).amqp.as_task_v2("i", task, args, kwargs)
    body = dumps(sent.body)
    properties = {"body_encoding": "base64"} if encoded else {}
    text = base64.b64encode(body.encode()).decode() if encoded else body
    return dumps({"body": text, "headers": sent.headers, "properties": properties}).encode()


NO_ARGUMENTS = json.dumps(
    {"headers": {"task": "gaelp.embed", "id": 1}, "properties": {}, "body": "5"}
).encode()


@pytest.mark.parametrize("encoded", [True, False])
def test_a_message_tells_what_it_asks_for_and_nothing_is_assumed(encoded):
    plain = facts_of(message(encoded=encoded), "background")
    assert plain == Facts("i", "background", "background", "chat", "", "", None)
    told = facts_of(
        message(agent="coding", model="m", tenant="t", tier="interactive", encoded=encoded), "batch"
    )
    assert told == Facts("i", "batch", "batch", "coding", "m", "t", None), "of two tiers the lower counts"
    assert facts_of(message("gaelp.embed", (["SECRET"],), model="e"), "batch").agent == ""


@pytest.mark.parametrize(
    "junk",
    [
        b"", b"\xff\xfe", b"{}", b"[]", b"null", b'{"headers": {}}', message("gaelp.maintenance.prune"),
        message(tier="vip"), message(tier=["batch"]), message().replace(b'"body": "', b'"body": "x'),
        b"[" * 100_000, NO_ARGUMENTS,
    ],
    ids=range(12),
)  # fmt: skip
def test_what_cannot_be_read_or_calls_no_model_is_nobody(junk):
    assert facts_of(junk, "batch") is None


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        (Filter(), True),
        (Filter(tiers=frozenset({"batch", "background"})), True),
        (Filter(tiers=frozenset({"background"})), False),
        (Filter(agent="chat", model="m", tenant="t", queue="batch"), True),
        (Filter(agent="coding"), False),
        (Filter(model="n"), False),
        (Filter(tenant="u"), False),
        (Filter(queue="interactive"), False),
        (Filter(older_than_s=59.0), True),
        (Filter(older_than_s=60.0), False),
    ],
)
def test_every_limit_must_fit(wanted, fits):
    assert wanted.fits(FACTS, now=1060.0) is fits


def test_who_does_not_tell_its_age_is_never_older():
    assert not Filter(older_than_s=1.0).fits(FACTS._replace(published_at=None), now=1e9)


@pytest.mark.parametrize(
    "words",
    [(), ("ID", "--all"), ("ID", "--agent", "chat"), ("--state", "asleep"), ("--tier", "vip"), ("--all",)],
)
def test_what_is_unclear_is_refused(monkeypatch, words):
    monkeypatch.setattr(roundup, "count", lambda *_: Counter(queued=3))
    monkeypatch.setattr(roundup, "cancel", lambda *_: pytest.fail("nobody said yes"))
    assert CliRunner().invoke(cli, ("cancel", *words)).exit_code == 2


def test_a_preview_and_a_yes(monkeypatch):
    asked = []
    monkeypatch.setattr(roundup, "count", lambda *_: Counter(queued=1234, running=1))
    monkeypatch.setattr(roundup, "cancel", lambda _, wanted, __: asked.append(wanted) or Counter(queued=2))
    shown = CliRunner().invoke(cli, ("cancel", "--tier", "batch", "--dry-run"))
    assert (shown.stdout, asked) == ("1,235 (1,234 queued, 1 running) would be cancelled.\n", [])
    done = CliRunner().invoke(cli, ("cancel", "--tier", "batch", "--state", "queued", "--yes", "--json"))
    assert json.loads(done.stdout) == {"cancelled": 2, "queued": 2, "parked": 0, "running": 0}
    assert asked == [Filter(tiers=frozenset({"batch"}), states=frozenset({"queued"}))]
    assert set(STATES) == {"queued", "parked", "running"}
