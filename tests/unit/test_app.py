"""The Celery app: what it sets, and when it reads the environment."""

import subprocess
import sys

import pytest
from celery import current_app
from celery._state import _set_current_app

from gaelp_tasks.celery_app import GaelpApp, app, celery_settings
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.queues import INBOXES, SYSTEM
from gaelp_tasks.settings import Settings


@pytest.fixture
def made():
    """`made(settings)` is an app of its own; the current one is put back."""
    before = current_app._get_current_object()
    yield GaelpApp
    _set_current_app(before)


def test_nothing_but_json_is_read_and_a_killed_run_is_not_acknowledged():
    conf = celery_settings(Settings())
    assert conf["accept_content"] == ["json"]
    assert conf["task_serializer"] == conf["result_serializer"] == "json"
    assert conf["task_acks_late"] is True


def test_each_queue_has_an_exchange_and_a_key_of_its_own():
    queues = {queue.name: queue for queue in celery_settings(Settings())["task_queues"]}
    assert queues.keys() == {*INBOXES, SYSTEM}
    assert all(queue.exchange.name == queue.routing_key == name for name, queue in queues.items())
    assert celery_settings(Settings())["task_default_queue"] == "interactive"


@pytest.mark.parametrize(
    ("name", "queue"),
    [
        ("gaelp.invoke_agent", "interactive"),
        ("gaelp.of.another.release", "interactive"),
        ("gaelp.maintenance.expire_abandoned_streams", "system"),
        ("celery.map", "interactive"),
        ("service.note", "celery"),
    ],
)
def test_what_names_no_queue_goes_where_somebody_takes_it(name, queue):
    app.loader.import_default_modules()
    assert app.amqp.router.route({}, name, task_type=app.tasks.get(name))["queue"].name == queue
    assert app.amqp.router.route({"queue": "named"}, name)["queue"].name == "named"


def test_settings_become_celerys(made):
    settings = Settings(
        broker_url="redis://h:1/0", result_backend="redis://r:1/1", result_ttl_s=5.0, num_parallel=3,
        namespace="two.",
    )  # fmt: skip
    conf = made(settings).conf
    assert (conf.broker_url, conf.result_backend, conf.result_expires) == (
        "redis://h:1/0",
        "redis://r:1/1",
        5.0,
    )
    assert conf.worker_concurrency == 3
    assert conf.broker_transport_options["global_keyprefix"] == "two."
    assert conf.result_backend_transport_options["global_keyprefix"] == "two."


def test_without_a_namespace_there_is_no_prefix():
    conf = celery_settings(Settings())
    assert "global_keyprefix" not in conf["broker_transport_options"]
    assert "global_keyprefix" not in conf["result_backend_transport_options"]


def test_the_environment_is_read_at_first_use_and_a_mistake_told_then(made, monkeypatch):
    fresh = made()
    monkeypatch.setenv("GAELP_RETRY_ATTEMPTS", "0")
    with pytest.raises(SettingsError, match="GAELP_RETRY_ATTEMPTS"):
        _ = fresh.settings
    monkeypatch.setenv("GAELP_RETRY_ATTEMPTS", "9")
    assert fresh.settings.retry_attempts == 9


def test_the_names_that_celery_loads_exist():
    conf = celery_settings(Settings())
    names = [
        conf["worker_pool"], conf["worker_consumer"], conf["beat_scheduler"],
        conf["broker_transport_options"]["queue_order_strategy"],
    ]  # fmt: skip
    for name in names:
        module, _, attribute = name.partition(":")
        assert hasattr(__import__(module, fromlist=[attribute]), attribute), name


def test_our_tasks_are_registered_by_the_names_of_the_contract():
    app.loader.import_default_modules()
    assert {
        "gaelp.invoke_agent",
        "gaelp.embed",
        "gaelp.maintenance.expire_abandoned_streams",
        "gaelp.maintenance.expire_lost_attachments",
        "gaelp.maintenance.prune_batches",
        "gaelp.maintenance.prune_history",
        "gaelp.maintenance.record_history",
        "gaelp.maintenance.resume_batches",
        "gaelp.run_batch",
    } <= app.tasks.keys()


def test_importing_reads_no_environment_no_client_and_no_database():
    script = (
        "import sys, gaelp_tasks, gaelp_tasks.tasks.maintenance, gaelp_tasks.tasks.batch; print([m for m in "
        "('aiohttp', 'gaelp_tasks.clients', 'sqlalchemy', 'alembic') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={"GAELP_RETRY_ATTEMPTS": "wrong"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr
