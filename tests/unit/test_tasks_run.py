"""The tasks from the arguments that arrive to what Celery keeps, run in this process."""

import pytest
from celery import chain
from celery.backends.cache import CacheBackend

from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.errors import InvalidInvocation, NodeUnreachable, RequestRefused
from gaelp_tasks.runtime import shared_runtime
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.invoke import invoke_agent
from support.fakes import FakeBroker, Workbench


@pytest.fixture
def process(monkeypatch):
    """`process(*scripts)` is what runs here: its client plays these scripts."""
    made = []

    def make(*scripts):
        broker = FakeBroker()
        bench = Workbench(shared_runtime().loop, broker, ScriptedClient(*scripts))
        made.append(bench)
        monkeypatch.setitem(app.__dict__, "redis", broker.sync)
        monkeypatch.setattr(GaelpApp, "backend", CacheBackend(app=app, backend="memory"))
        monkeypatch.setattr("gaelp_tasks.tasks.resources.shared_resources", lambda: bench.at)
        return bench

    yield make
    for bench in made:
        shared_runtime().run(bench.redis.aclose())


def test_an_answer_comes_back_as_the_result_mapping(process):
    bench = process(["Hel", "lo"])
    done = invoke_agent.apply(["Why?"], {"agent": "reasoning", "tier": "batch", "priority": 3}, task_id="i")
    result = done.get()
    assert (result["text"], result["id"], result["tier"], result["priority"]) == ("Hello", "i", "batch", 3)
    assert result["agent"] == "reasoning"
    assert bench.text() == "Hello"
    assert bench.at.runs.ids() == ()


def test_every_argument_of_the_contract_reaches_the_model(process):
    bench = process(["x"])
    invoke_agent.apply(
        kwargs={
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "options": {"top_p": 0.5},
            "format": {"type": "object"},
            "tools": [{"type": "function"}],
            "think": True,
            "stall_timeout_s": 4.0,
            "model": "scripted",
        }
    ).get()
    [asked] = bench.at.client.asked
    assert [message.role for message in asked.messages] == ["system", "user"], (
        "one system prompt, the caller's"
    )
    assert (asked.format, asked.think, asked.stall_timeout_s) == ({"type": "object"}, True, 4.0)
    assert asked.options == {"top_p": 0.5}


def test_in_a_chain_the_result_of_one_step_is_the_prompt_of_the_next(process):
    bench = process(["first ", "answer"], ["second"])
    result = chain(invoke_agent.s("Why?"), invoke_agent.s(agent="coding")).apply().get()
    assert result["text"] == "second"
    assert bench.at.client.asked[1].messages[-1].content == "first answer"


def test_a_lost_node_is_tried_again_and_the_attempt_is_counted(process):
    bench = process([NodeUnreachable("gone")], ["Hello"])
    assert invoke_agent.apply(["x"], task_id="i").get()["attempts"] == 2
    assert [event.claim for event in bench.events()][-1] == 2


@pytest.mark.parametrize(
    "kwargs", [{"prompt": " "}, {"prompt": "x", "agent": "nobody"}, {"prompt": "x", "tier": "vip"}]
)
def test_bad_input_from_plain_celery_fails_without_a_run(process, kwargs):
    bench = process(["x"])
    done = invoke_agent.apply(kwargs=kwargs, task_id="i")
    with pytest.raises(InvalidInvocation):
        done.get()
    assert done.state == "FAILURE"
    assert bench.at.client.asked == []
    assert bench.events() == []


def test_what_the_node_refuses_fails_with_that_error(process):
    bench = process([RequestRefused("This model has no tools.")])
    done = invoke_agent.apply(["x"], task_id="i")
    with pytest.raises(RequestRefused, match="no tools"):
        done.get()
    assert bench.end()["error"] == "RequestRefused"


def test_a_cancelled_one_returns_its_partial_text_and_nothing_follows(process):
    bench = process(["x"])
    request_cancel(bench.broker.sync, bench.at.keys, "i", ttl_s=60.0)
    done = invoke_agent.apply(["x"], task_id="i", link=invoke_agent.s(agent="coding"))
    assert (done.get()["stop_reason"], done.get()["text"]) == ("cancelled", "")
    assert bench.at.client.asked == []


def test_texts_are_embedded_in_their_order(process):
    bench = process()
    result = embed.apply([["a", "b"]], {"tier": "background"}, task_id="i").get()
    assert (len(result["embeddings"]), result["tier"]) == (2, "background")
    assert bench.at.client.embedded == [("a", "b")]
    assert len(embed.apply(["a"]).get()["embeddings"]) == 1
