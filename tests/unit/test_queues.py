"""Which queue, and which tier counts."""

import base64
import json
import re
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.redis import Channel

from gaelp_tasks.models import Tier
from gaelp_tasks.queues import (
    ANY,
    EMBED,
    INBOXES,
    SEPARATOR,
    STEPS,
    SYSTEM,
    lists,
    lower_tier,
    model_of,
    place,
    plain,
    route,
    step_of,
    tier_of,
)

tiers = st.sampled_from(Tier)
I, B, G = Tier.INTERACTIVE, Tier.BATCH, Tier.BACKGROUND  # noqa: E741  a table of three


def test_there_are_three_inboxes_highest_tier_first_and_maintenance_is_none_of_them():
    assert INBOXES == ("interactive", "batch", "background")
    assert [tier.rank for tier in Tier] == [0, 1, 2]
    assert SYSTEM not in INBOXES


@given(tiers, st.none() | st.text(min_size=1), st.booleans())
def test_a_queue_of_a_tier_and_model_tells_both(tier, model, embeds):
    queue = route(tier, model, embeds=embeds)
    assert tier_of(queue) is tier
    assert model_of(queue) == (plain(model) if model else EMBED if embeds else ANY)
    assert re.fullmatch("[A-Za-z0-9._-]+", queue)


def test_queues_are_named_as_the_contract_says():
    assert route(I, "llama3.2:3b") == "interactive.llama3.2_3b"
    assert route(G, "hf.co/a/b-GGUF:Q4_K_M") == "background.hf.co_a_b-GGUF_Q4_K_M"
    assert route(B) == "batch.any"
    assert route(B, embeds=True) == "batch.embed"


@pytest.mark.parametrize("name", ["system", "celery", "", "Interactive", "interactive ", "celery.batch"])
def test_other_queues_have_no_tier(name):
    assert tier_of(name) is None
    assert model_of(name) == ""


def test_an_inbox_has_a_tier_and_no_model():
    assert [(tier_of(name), model_of(name)) for name in INBOXES] == [(tier, "") for tier in Tier]


def test_the_lists_of_a_queue_are_kombus_and_the_highest_priority_is_the_first():
    channel = SimpleNamespace(priority_steps=list(STEPS), sep=SEPARATOR)
    channel.priority = partial(Channel.priority, channel)
    names = [Channel._q_for_pri(channel, "batch.m", step) for step in STEPS]
    assert lists("batch.m") == names
    assert [lists("batch.m")[step_of(priority)] for priority in range(10, 0, -1)] == names


def call(task="gaelp.invoke_agent", encoding="base64", **given):
    body = json.dumps([["hi"], given, {}]).encode()
    text = base64.b64encode(body).decode() if encoding else body.decode()
    told = {"headers": {"task": task}, "properties": {"body_encoding": encoding}, "body": text}
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("message", "inbox", "queue", "step"),
    [
        (call(), "interactive", "interactive.any", 5),
        (call(encoding=None, model="m:1b"), "batch", "batch.m_1b", 5),
        (call(model="m", tier="background", priority=10), "interactive", "background.m", 0),
        (call(tier="interactive", priority=1), "background", "background.any", 9),
        (call("gaelp.embed"), "batch", "batch.embed", 5),
        (call("gaelp.embed", model="e"), "batch", "batch.e", 5),
        # nonsense moves on, and fails when it runs
        (call(model=7, tier=["batch"], priority=True), "batch", "batch.any", 5),
        (call(priority=11), "batch", "batch.any", 5),
        (
            b'{"headers": {"task": "gaelp.invoke_agent"}, "properties": null, "body": "%"}',
            "batch",
            "batch.any",
            5,
        ),
        (b'{"headers": {"task": "gaelp.invoke_agent"}}', "batch", "batch.any", 5),
    ],
)
def test_a_message_of_an_inbox_belongs_where_its_arguments_say(message, inbox, queue, step):
    assert place(message, inbox) == (queue, step)


@pytest.mark.parametrize("junk", [b"null", b"[]", b"{}", b'{"headers": {"task": []}}', call("my.task")])
def test_what_calls_no_model_stays(junk):
    assert place(junk, "batch") is None


@pytest.mark.parametrize("junk", [b"", b"\xff", call() + b"\x1f", b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_cannot_be_read_moves_on_to_be_refused(junk):
    """Redis reads some of it, and would have it sorted for ever."""
    assert place(junk, "batch") == ("batch.any", 5)


@pytest.mark.parametrize(
    ("asked", "queue", "counts"),
    [
        (None, None, I),
        (None, "batch", B),
        (None, "background", G),
        (None, "elsewhere", I),
        (B, None, B),
        (G, "elsewhere", G),
        (I, "background", G),
        (G, "interactive", G),
        (B, "interactive", B),
        (B, "background", G),
        (B, "batch", B),
    ],
)
def test_of_tier_and_queue_the_lower_counts(asked, queue, counts):
    assert lower_tier(asked, queue) is counts


@given(tiers, tiers)
def test_nobody_jumps_a_queue_by_argument(asked, queue):
    counts = lower_tier(asked, route(queue))
    assert counts.rank == max(asked.rank, queue.rank)
    assert lower_tier(queue, route(asked)) is counts
