"""Flower is shown what is known to tell nothing, whoever sent it."""

import pytest

from gaelp_tasks.cli.masks import HIDDEN, masked_event, masked_failure, masked_inspection, masked_result
from gaelp_tasks.models.invocation import Embedding, Invocation

SAID = "the secret word"


@pytest.mark.parametrize(
    ("summary", "shown"),
    [
        (Invocation(prompt="x").summary(), "agent=chat tier=interactive"),
        (
            Invocation(prompt="x", agent="my.own", model="hf.co/a/b:Q4", tier="batch", priority=9).summary(),
            "agent=my.own model=hf.co/a/b:Q4 tier=batch priority=9",
        ),
        (
            Embedding(input=("x",), model="all-minilm:latest").summary(),
            "texts=1 model=all-minilm:latest tier=interactive",
        ),
        ("agent=chat priority=3", "agent=chat priority=3"),
        ("priority=5", "{}"),
        ("{}", "{}"),
    ],
)
def test_of_a_summary_of_ours_is_shown_what_is_not_usual(summary, shown):
    event = {"type": "task-received", "uuid": "1", "args": "()", "kwargs": summary}
    assert masked_event(event) == {**event, "kwargs": shown}


@pytest.mark.parametrize(
    "kwargs",
    [
        f"{{'prompt': '{SAID}'}}",
        f"agent={SAID}",
        "prompt=secret",
        f"agent=chat tier=batch {SAID}",
        "agent=chat\nsecret",
        {"prompt": SAID},
        "agent=" + "secret" * 40,
    ],
)
def test_other_arguments_are_hidden(kwargs):
    told = masked_event({"type": "task-sent", "args": f"('{SAID}',)", "kwargs": kwargs})
    assert told == {"type": "task-sent", "args": HIDDEN, "kwargs": HIDDEN}


def test_a_field_that_nobody_knows_is_dropped_from_a_task_and_kept_of_a_worker():
    assert masked_event({"type": "task-custom", "uuid": "1", "note": SAID}) == {
        "type": "task-custom",
        "uuid": "1",
    }
    heartbeat = {"type": "worker-heartbeat", "active": 2, "loadavg": [1, 2, 3]}
    assert masked_event(heartbeat) == heartbeat


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("<stop, 12 tokens>", "<stop, 12 tokens>"),
        ("None", "None"),
        ("3", "3"),
        (f"{{'text': '{SAID}'}}", HIDDEN),
        (f"'{SAID}'", HIDDEN),
        ("<stop, 12 tokens> secret", HIDDEN),
    ],
)
def test_of_a_result_its_outcome_is_shown(result, shown):
    assert masked_event({"type": "task-succeeded", "result": result})["result"] == shown
    assert masked_result(result) == shown


def test_a_stored_result_tells_its_stop_reason_and_tokens():
    stored = {"text": SAID, "stop_reason": "cancelled", "usage": {"completion_tokens": 7}}
    assert masked_result(stored) == "<cancelled, 7 tokens>"
    assert masked_result({"text": SAID}) == HIDDEN
    assert masked_result({**stored, "stop_reason": f"<{SAID}"}) == HIDDEN


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (f"NodeFailed('{SAID}')", "NodeFailed"),
        ("pydantic_core._pydantic_core.ValidationError(...)", "ValidationError"),
        (ValueError(SAID), "ValueError"),
        (SAID, HIDDEN),
    ],
)
def test_of_a_failure_its_class_is_shown(failure, shown):
    assert masked_failure(failure) == shown


def test_a_traceback_keeps_the_calls_before_the_first_message_and_no_line_of_source():
    text = (
        "Traceback (most recent call last):\n"
        '  File "/app/agent.py", line 3, in process\n'
        f"    parse('{SAID}')\n"
        '  File "<given>", line 1\n'
        f"    {SAID}\n"
        f"ValueError: {SAID}\n"
        f'  File "{SAID}", line 1, in secret\n'
        "\nDuring handling of the above exception, another exception occurred:\n\n"
        f"LookupError: {SAID}\n"
    )
    told = masked_event({"type": "task-failed", "traceback": text})["traceback"]
    assert told.splitlines()[0] == '  File "/app/agent.py", line 3, in process'
    assert len(told.splitlines()) == 2
    assert "secret" not in told


def test_what_workers_tell_of_running_and_waiting_tasks_is_masked_alike():
    task = {"id": "1", "name": "x", "args": [SAID], "kwargs": {"prompt": SAID}}
    hidden = {"id": "1", "name": "x", "args": HIDDEN, "kwargs": HIDDEN}
    assert masked_inspection("active", [task]) == [hidden]
    assert masked_inspection("scheduled", [{"eta": "now", "request": task}]) == [
        {"eta": "now", "request": hidden}
    ]
    assert masked_inspection("reserved", [{**task, "args": [], "kwargs": {}}]) == [
        {**task, "args": "()", "kwargs": "{}"}
    ]
    assert masked_inspection("registered", ["gaelp.embed"]) == ["gaelp.embed"]
