"""What a run takes from the cache and leaves there: no load, no call, no text of another tenant."""

import asyncio

import pytest

from gaelp_tasks import registry, streams
from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.cancellation import Reason
from gaelp_tasks.clients import ChatResponse, ModelInfo
from gaelp_tasks.clients.scripted import ScriptedClient
from gaelp_tasks.errors import ModelMissing, RequestRefused
from gaelp_tasks.models import Embedding, FunctionCall, ToolCall, Usage
from gaelp_tasks.retries import Cut, Done, Failed
from gaelp_tasks.streams import End, Piece
from gaelp_tasks.tasks.embedding import EmbeddingWork
from gaelp_tasks.tasks.resources import Node
from gaelp_tasks.tasks.walk import Run, walk
from support.fakes import NODE, FakeBroker, Workbench

FIXED = {"options": {"temperature": 0}, "cache": True}


class Versioned(ScriptedClient):
    """A scripted client whose model has a digest."""

    digest = "d1"

    async def models(self):
        return (ModelInfo(name=self.model_name, digest=self.digest),)


@pytest.fixture
async def bench(monkeypatch):
    monkeypatch.setattr(streams, "AGAIN_S", 0.0)
    broker = FakeBroker()
    benches = []

    def make(*scripts, **settings):
        """A process beside a node of its own; all share one Redis."""
        made = Workbench(asyncio.get_running_loop(), broker, Versioned(*scripts), num_ctx=2048, **settings)
        benches.append(made)
        return made

    yield make
    for made in benches:
        await made.redis.aclose()


async def embedded(made, *texts, run="e", **asked):
    parsed = Embedding.parse({"input": list(texts)} | asked, max_prompt_bytes=10_000)
    the_run = Run(run, parsed, 1, made.now(), made.at.runs.enter(run))
    return await walk(the_run, EmbeddingWork(the_run, parsed, made.at), made.at)


def calls(made):
    return len(made.at.client.asked) + len(made.at.client.embedded)


# -- answers


async def test_an_exact_answer_is_given_out_again_without_the_model(bench):
    made = bench(["Hel", "lo"], ["another"])
    first = (await made.walk(made.run("a", **FIXED))).result
    made.tick.advance(3.0)
    outcome = await made.walk(made.run("b", tier="batch", priority=9, **FIXED))
    assert isinstance(outcome, Done)
    result = outcome.result
    assert (result.text, result.cached, result.id) == (first.text, True, "b")
    assert (result.tier, result.priority, result.stop_reason) == ("batch", 9, "stop")
    assert (result.usage, result.timings.load_s) == (Usage(), None)
    assert (first.cached, first.usage.completion_tokens) == (False, 2)
    assert calls(made) == 1
    assert made.at.client.loads == ["scripted"]


async def test_a_reader_sees_a_known_answer_as_any_other(bench):
    made = bench(["Hel", "lo"])
    await made.walk(made.run("a", **FIXED))
    await made.walk(made.run("b", **FIXED))
    events = made.events("b")
    assert [type(event).__name__ for event in events] == ["Start", "Piece", "End"]
    assert isinstance(events[1], Piece)
    assert events[1].text == "Hello"
    assert isinstance(events[2], End)
    assert events[2].facts["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}


@pytest.mark.parametrize(
    ("setting", "wish", "known"),
    [
        (False, None, False),
        (False, True, True),
        (True, None, True),
        (True, False, False),
        (False, False, False),
    ],
)
async def test_answers_are_kept_only_where_that_is_wanted(bench, setting, wish, known):
    made = bench(["x"], cache_answers=setting)
    asked = FIXED | {"cache": wish}
    await made.walk(made.run("a", **asked))
    assert (await made.walk(made.run("b", **asked))).result.cached is known


@pytest.mark.parametrize("options", [None, {"temperature": 0.5}, {"seed": -1}])
async def test_what_may_come_out_differently_is_made_anew(bench, options):
    made = bench(["x"])
    for run in "ab":
        assert not (await made.walk(made.run(run, cache=True, options=options))).result.cached
    assert calls(made) == 2


async def test_tenants_share_nothing(bench):
    made = bench(["x"])
    for tenant in (None, "t", "u"):
        for cached in (False, True):
            result = (await made.walk(made.run(f"{tenant} {cached}", tenant=tenant, **FIXED))).result
            assert result.cached is cached


async def test_a_new_version_of_the_model_answers_anew(bench):
    made = bench(["old"], ["new"])
    await made.walk(made.run("a", **FIXED))
    made.at.client.digest = "d2"
    made.tick.advance(made.at.settings.poll_interval_s + 0.1)
    assert (await made.walk(made.run("b", **FIXED))).result.text == "new"


async def test_an_answer_during_which_the_model_was_replaced_is_not_kept(bench):
    made = bench()

    async def replaced():
        made.at.client.digest = "d2"
        made.tick.advance(0.1)

    made.at.client._scripts = (["old", replaced], ["new"])
    await made.walk(made.run("a", **FIXED))
    made.at.client.digest = "d1"
    made.tick.advance(100.0)
    assert (await made.walk(made.run("b", **FIXED))).result.text == "new"


async def test_another_process_finds_the_answer_and_another_context_does_not(bench):
    await (one := bench(["x"])).walk(one.run("a", **FIXED))
    other = bench(["y"])
    assert (await other.walk(other.run("b", **FIXED))).result.cached
    wider = bench(["z"])
    wider.at.settings = wider.at.settings.model_copy(update={"num_ctx": 4096})
    assert not (await wider.walk(wider.run("c", **FIXED))).result.cached


async def test_without_a_context_of_our_own_each_nodes_default_counts(bench):
    made, other = bench(["x"]), bench(["y"])
    for one in (made, other):
        one.at.settings = one.at.settings.model_copy(update={"num_ctx": 0})
    other.at.nodes = (Node("http://other:11434", other.at.client, lambda _: other.at.client),)
    await made.walk(made.run("a", **FIXED))
    assert not (await other.walk(other.run("b", **FIXED))).result.cached
    assert (await made.walk(made.run("c", **FIXED))).result.cached


async def test_an_answer_that_rests_on_documents_depends_on_the_embedding_model_too(bench, monkeypatch):
    monkeypatch.setattr(registry.AGENTS, "registered", {})

    class Reader(BaseAgent):
        def process(self, messages, *, documents=(), **options):
            return super().process(messages, **options)

    registry.register_agent("reader")(Reader)
    made = bench(["x"])
    asked = FIXED | {"agent": "reader", "documents": ["a document"]}
    await made.walk(made.run("a", **asked))
    assert (await made.walk(made.run("b", **asked))).result.cached
    resolve = made.at.client.resolve

    async def none_embeds(model, *, embeds=False):
        if embeds:
            raise ModelMissing("none")
        return await resolve(model)

    made.at.client.resolve = none_embeds
    assert not (await made.walk(made.run("c", **asked))).result.cached


async def test_only_a_whole_answer_is_kept(bench):
    made = bench(["a", "b", "c"], [RequestRefused("no")], ["whole"])
    short = {"options": {"temperature": 0, "num_predict": 1}, "cache": True}
    assert (await made.walk(made.run("a", **short))).result.stop_reason == "length"
    assert isinstance(await made.walk(made.run("b", **FIXED)), Failed)
    assert not (await made.walk(made.run("c", **short))).result.cached


async def test_an_answer_that_was_cancelled_is_neither_given_nor_kept(bench):
    made = bench(["x"])
    run = made.run("a", **FIXED)
    run.cancellation.stop(Reason.USER)
    assert isinstance(await made.walk(run), Cut)
    assert not (await made.walk(made.run("b", **FIXED))).result.cached


async def test_another_agent_gives_its_own_answer(bench, monkeypatch):
    monkeypatch.setattr(registry.AGENTS, "registered", {})

    class Mine(BaseAgent):
        system_prompt = "Be brief."

    registry.register_agent("mine")(Mine)
    made = bench(["x"])
    for agent in ("chat", "mine", "coding"):
        assert not (await made.walk(made.run(agent, agent=agent, **FIXED))).result.cached
    Mine.system_prompt = "Be long."
    assert not (await made.walk(made.run("long", agent="mine", **FIXED))).result.cached
    assert (await made.walk(made.run("again", agent="mine", **FIXED))).result.cached


async def test_tool_calls_and_data_come_along(bench, monkeypatch):
    monkeypatch.setattr(registry.AGENTS, "registered", {})

    class Finder(BaseAgent):
        async def run(self, messages, **options):
            call = ToolCall(function=FunctionCall(name="f", arguments={"a": 1}))
            yield ChatResponse(content="found", tool_calls=(call,), data={"citations": [1]}, done=True)

    registry.register_agent("finder")(Finder)
    made = bench(["x"])
    first = (await made.walk(made.run("a", agent="finder", **FIXED))).result
    again = (await made.walk(made.run("b", agent="finder", **FIXED))).result
    assert again.cached
    assert (again.tool_calls, again.data) == (first.tool_calls, first.data)
    assert again.data == {"citations": [1]}
    assert again.tool_calls[0]["function"]["name"] == "f"


async def test_junk_in_the_cache_is_a_miss(bench):
    made = bench(["x"])
    await made.walk(made.run("a", **FIXED))
    [key] = made.broker.sync.keys("gaelp:cache:entry:*")
    made.broker.sync.set(key, '{"text": 5}')
    result = (await made.walk(made.run("b", **FIXED))).result
    assert (result.text, result.cached) == ("x", False)


# -- vectors


async def test_known_texts_need_no_model_and_unknown_ones_alone_are_sent(bench):
    made = bench()
    first = (await embedded(made, "a b", "c")).result
    assert (first.cached, first.usage.prompt_tokens) == (0, 3)
    again = (await embedded(made, "c", "a b", "c")).result
    assert again.embeddings == (first.embeddings[1], first.embeddings[0], first.embeddings[1])
    assert (again.cached, again.usage, again.timings.load_s) == (3, Usage(), None)
    some = (await embedded(made, "new", "c", "newer")).result
    assert (some.cached, some.embeddings[1]) == (1, first.embeddings[1])
    assert made.at.client.embedded == [("a b", "c"), ("new", "newer")]
    assert (await embedded(made, "newer", "new")).result.cached == 2


@pytest.mark.parametrize(
    ("setting", "wish", "known"),
    [(True, None, 1), (True, False, 0), (False, None, 0), (False, True, 1), (True, True, 1)],
)
async def test_vectors_are_kept_unless_that_is_not_wanted(bench, setting, wish, known):
    made = bench(cache_embeddings=setting)
    await embedded(made, "a", cache=wish)
    assert (await embedded(made, "a", cache=wish)).result.cached == known


async def test_vectors_never_cross_tenants(bench):
    made = bench()
    for tenant in (None, "t", "u"):
        assert (await embedded(made, "a", tenant=tenant)).result.cached == 0
        assert (await embedded(made, "a", tenant=tenant)).result.cached == 1


async def test_a_new_version_of_the_model_embeds_anew(bench):
    made = bench()
    await embedded(made, "a")
    made.at.client.digest = "d2"
    made.tick.advance(made.at.settings.poll_interval_s + 0.1)
    assert (await embedded(made, "a")).result.cached == 0


async def test_a_model_without_a_digest_is_not_cached(bench):
    made = bench()
    made.at.client.digest = ""
    for _ in range(2):
        assert (await embedded(made, "a")).result.cached == 0
    assert made.broker.sync.keys("gaelp:cache:*") == []


async def test_the_keys_tell_neither_text_nor_tenant(bench):
    made = bench()
    await embedded(made, "secret", tenant="secret")
    await made.walk(made.run(prompt="secret", tenant="secret", **FIXED))
    names = " ".join(made.broker.sync.keys("gaelp:cache:*"))
    names += " ".join(made.broker.sync.zrange("gaelp:cache:index", 0, -1))
    assert "entry" in names
    assert "secret" not in names


async def test_a_cut_embedding_returns_no_half(bench):
    made = bench()
    await embedded(made, "a")
    run = made.run("x")
    gate = asyncio.Event()

    class Slow(Versioned):
        async def embed(self, texts, *, model=None):
            gate.set()
            await asyncio.Event().wait()

    made.at.client = Slow()
    walking = asyncio.create_task(embedded(made, "a", "b", run=run.id))
    await asyncio.wait_for(gate.wait(), 10)
    made.at.runs.stop(run.id, Reason.USER)
    result = (await asyncio.wait_for(walking, 10)).result
    assert (result.stop_reason, result.embeddings, result.cached) == ("cancelled", (), 0)
    assert NODE in made.at.nodes[0].url
