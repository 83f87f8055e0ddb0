"""What is wrong with a message is seen before Celery is given it."""

import base64
import json
from typing import Any

import pytest

from gaelp_workers.envelope import fault, fault_of_broadcast

NEST = "[" * 10_000


def message(body: Any = ([], {}, {}), **changes: Any) -> dict[str, Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    return {
        "body": base64.b64encode(text.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "id": "1",
            "task": "gaelp.embed",
            "timelimit": [None, 5.0],
            "retries": 2,
            "stamps": {"a": ["b"]},
        },
        "properties": {"delivery_info": {"exchange": "", "routing_key": "batch"}, "body_encoding": "base64"},
    } | changes


def header(**given: Any) -> dict[str, Any]:
    good = message()
    return good | {"headers": good["headers"] | given}


def command(body: Any, **changes: Any) -> dict[str, Any]:
    return message(body, headers={"clock": 1}, **changes)


def test_what_celery_sends_is_right():
    step = {"task": "a", "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True}
    follows = {"callbacks": [step], "errbacks": None, "chain": [step, step], "chord": step}
    assert fault(message()) is None
    assert fault(message([["a"], {"b": 1}, follows])) is None
    assert fault(message({"args": [], "kwargs": {}, "callbacks": None})) is None, "of Celery before 4"
    assert (
        fault(message(body="[[], {}, {}]") | {"body": "[[], {}, {}]", "properties": {"delivery_info": {}}})
        is None
    )


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (message(**{"content-type": "application/data"}), "not JSON inside"),
        (message(**{"content-type": None}), "not JSON inside"),
        (message(**{"content-type": ["application/json"]}), "not JSON inside"),
        (message(**{"content-encoding": "zlib"}), "malformed content-encoding"),
        (message(**{"content-encoding": {}}), "malformed content-encoding"),
        (message("not JSON"), "malformed body"),
        (message(NEST), "malformed body"),
        (message('{"__type__": "uuid", "__value__": {}}'), "malformed body"),
        (message(f"[[], {{}}, {'9' * 5_000}]"), "malformed body"),
        (message(body="x") | {"body": "%%%"}, "malformed body"),
        (message([[], {}]), "malformed body"),
        (message(None), "malformed body"),
        (message([{}, {}, {}]), "malformed arguments"),
        (message([[], [], {}]), "malformed arguments"),
        (message([[], {}, []]), "malformed arguments"),
        (message([[], {}, {"callbacks": 5}]), "malformed callbacks"),
        (message([[], {}, {"errbacks": ["a"]}]), "malformed errbacks"),
        (message([[], {}, {"chain": [{"task": ""}]}]), "malformed chain"),
        (message([[], {}, {"chord": {"task": "a", "options": []}}]), "malformed chord"),
        (header(timelimit=[float("nan"), None]), "malformed header timelimit"),
        (header(timelimit=[-1, None]), "malformed header timelimit"),
        (header(timelimit=[True, None]), "malformed header timelimit"),
        (header(timelimit=[1]), "malformed header timelimit"),
        (header(retries=-1), "malformed header retries"),
        (header(retries=10**400), "malformed header retries"),
        (header(retries=1.5), "malformed header retries"),
        (header(retries=True), "malformed header retries"),
        (header(stamps={"a": {}}), "malformed header stamps"),
        (header(stamped_headers=[5]), "malformed header stamped_headers"),
        (header(expires=5), "malformed header expires"),
        (header(shadow=["a"]), "malformed header shadow"),
        (header(ignore_result="yes"), "malformed header ignore_result"),
        (header(gaelp_published_at=float("inf")), "malformed header gaelp_published_at"),
        (header(gaelp_published_at=10**400), "malformed header gaelp_published_at"),
        (header(chord={"task": "a"}), "malformed header chord"),
        (message(properties={"delivery_info": []}), "malformed property delivery_info"),
        (message(properties={"delivery_info": {"routing_key": 5}}), "malformed property delivery_info"),
        (
            message(properties={"delivery_info": {}, "body_encoding": "rot13"}),
            "malformed property body_encoding",
        ),
        (message(properties={"delivery_info": {}, "body_encoding": []}), "malformed property body_encoding"),
        (message(properties={"delivery_info": {}, "reply_to": {}}), "malformed property reply_to"),
    ],
)
def test_what_celery_would_stumble_over_is_named(wrong, reason):
    assert fault(wrong) == reason


def test_a_command_and_events_are_read():
    reply = {"exchange": "reply.celery.pidbox", "routing_key": "1"}
    assert fault_of_broadcast(command({"method": "ping", "arguments": {}, "reply_to": reply})) is None
    assert fault_of_broadcast(command({"method": "ping", "destination": ["a@b"]})) is None
    assert fault_of_broadcast(command({"type": "worker-heartbeat", "hostname": "a"})) is None
    assert fault_of_broadcast(command([{"type": "task-sent"}, {"type": "task-received"}])) is None


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        5,
        {"body": 5},
        command({}, properties=[]),
        command({}, properties={"delivery_info": None}),
        command({}) | {"headers": {"compression": "zlib"}},
        command({}) | {"headers": {"clock": "now"}},
        command({}, **{"content-type": "application/x-python-serialize"}),
        command(NEST),
        command("junk"),
        command({}) | {"body": None},
        command(["ping"]),
        command({"method": 5}),
        command({"method": "ping", "arguments": []}),
        command({"method": "ping", "destination": {"a": 1}}),
        command({"method": "ping", "reply_to": {"exchange": "a"}}),
    ],
)
def test_what_no_worker_should_listen_to_is_seen(wrong):
    assert fault_of_broadcast(wrong) is not None
