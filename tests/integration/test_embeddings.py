"""Embeddings and what is known already, on a real Redis and a real worker beside a scripted server."""

import asyncio
import hashlib
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from gaelp_tasks import app, embed, invoke_agent
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.tasks.scheduled import is_idle
from support.eventually import eventually
from support.scripted_server import CHAT_MODEL, EMBED_MODEL, TOKENS, ScriptedServer

pytestmark = pytest.mark.redis

MANY = 1000
MOST_CALLS = 20
EXACT = {"model": CHAT_MODEL, "options": {"temperature": 0}, "cache": True}


def vector(text: str) -> list[float]:
    """What the scripted server makes of a text."""
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:4]]


class Server(ScriptedServer):
    """Tells what its models were asked to do, which is not what it is asked about them at each poll."""

    def texts(self) -> list[list[str]]:
        """Of each call that embeds; loading a model is a call with an empty text."""
        return [texts for request in self.asked("/api/embed") if (texts := request.json()["input"])]

    def work(self) -> int:
        paths = ("/api/embed", "/api/chat", "/api/generate")
        return sum(len(self.asked(path)) for path in paths)

    def has_digest(self, digest: str) -> None:
        async def tags(request, reply):
            listed = [{"name": name, "digest": digest} for name in (EMBED_MODEL, CHAT_MODEL)]
            reply.whole({"models": listed})

        self.on("/api/tags", tags)

    def holds(self, path: str) -> asyncio.Event:
        """Let calls of a path wait for the event that is returned."""
        go = asyncio.Event()

        async def wait(request, reply):
            waiting = [asyncio.create_task(event.wait()) for event in (go, reply.gone)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if not reply.gone.is_set():
                await self._healthy(request, reply)

        self.on(path, wait)
        return go


@pytest.fixture
async def server():
    async with Server() as running:
        yield running


@pytest.fixture
async def worker_beside(start_worker):
    async def start(server, **settings):
        return await asyncio.to_thread(start_worker, GAELP_OLLAMA_NODES=server.url, **settings)

    return start


def publish(texts, **how):
    """Every text in a call of its own; the handles in the order of the texts."""
    with ThreadPoolExecutor(4) as senders:
        return list(senders.map(lambda text: embed.delay(text, model=EMBED_MODEL, **how), texts))


async def results(*handles):
    return await asyncio.to_thread(lambda: [handle.get(timeout=60) for handle in handles])


async def embedded(*texts, **how):
    handle = await asyncio.to_thread(embed.delay, list(texts), model=EMBED_MODEL, **how)
    return (await results(handle))[0]


async def answered(prompt, **how):
    handle = await asyncio.to_thread(invoke_agent.delay, prompt, **(EXACT | how))
    return (await results(handle))[0]


async def until(look, what):
    await asyncio.to_thread(eventually, look, what=what)


async def test_a_thousand_single_embeddings_take_at_most_twenty_calls(server, worker_beside):
    texts = [f"text number {number}" for number in range(MANY)]
    handles = await asyncio.to_thread(publish, texts, cache=False)
    await worker_beside(server)
    found = await results(*handles)
    assert [result["embeddings"] for result in found] == [[vector(text)] for text in texts]
    assert len(server.asked("/api/embed")) <= MOST_CALLS
    assert sorted(text for call in server.texts() for text in call) == sorted(texts)
    assert sum(result["usage"]["prompt_tokens"] for result in found) == MANY


async def test_embeddings_take_seats_and_share_one_call_while_every_slot_is_free_for_chats(
    server, worker_beside
):
    """Private: the pool knows an embedding by the first of the arguments that Celery's request gives it."""
    worker = await worker_beside(server, GAELP_NUM_PARALLEL="2", GAELP_EMBED_SEATS="8")
    go, endless = server.holds("/api/embed"), server.holds("/api/chat")
    handles = await asyncio.to_thread(publish, [f"t{number}" for number in range(5)], cache=False)
    await until(lambda: len(live_nodes(app)[0].embedding) == 5, "five are seated, though two slots are all")
    urgent = (Tier.INTERACTIVE,)
    assert not await asyncio.to_thread(is_idle, app, urgent), "embeddings are at work"
    chats = [await asyncio.to_thread(invoke_agent.delay, "Hi", model=CHAT_MODEL) for _ in range(2)]
    await until(lambda: live_nodes(app)[0].busy == 2, "both slots are free for chats")
    stats = await asyncio.to_thread(app.control.inspect([worker.name], timeout=5).stats)
    pool = stats[worker.name]["pool"]
    assert (pool["running"], pool["embedding"], pool["seats"], pool["max-concurrency"]) == (2, 5, 8, 2)
    assert len(server.asked("/api/embed")) == 1, "one call, the others wait for it"
    endless.set()
    assert [result["text"] for result in await results(*chats)] == ["".join(TOKENS)] * 2
    handles += await asyncio.to_thread(publish, [f"u{number}" for number in range(20)], cache=False)
    await until(lambda: len(live_nodes(app)[0].embedding) >= 8, "the seats are taken")
    stats = await asyncio.to_thread(app.control.inspect([worker.name], timeout=5).stats)
    assert stats[worker.name]["pool"]["embedding"] in {8, 9}, "a fetch under way is always read"
    go.set()
    await results(*handles)
    await until(lambda: is_idle(app, urgent), "a quiet moment comes")


async def test_one_text_that_the_node_refuses_harms_no_other(server, worker_beside):
    async def refuse(request, reply):
        if "bad" in request.json()["input"]:
            reply.whole({"error": "the input length exceeds the context length"}, 400)
        else:
            await server._healthy(request, reply)

    server.on("/api/embed", refuse)
    texts = [f"t{number}" for number in range(30)]
    handles = await asyncio.to_thread(publish, [*texts, "bad"])
    await worker_beside(server)
    found = await results(*handles[:-1])
    assert [result["embeddings"] for result in found] == [[vector(text)] for text in texts]
    with pytest.raises(Exception, match="exceeds the context length"):
        await results(handles[-1])


async def test_a_known_vector_costs_no_call_and_never_crosses_tenants(server, worker_beside):
    await worker_beside(server)
    first = await embedded("a", "b", tenant="t")
    work = server.work()
    again = await embedded("b", "a", tenant="t")
    assert server.work() == work
    assert again["embeddings"] == [vector("b"), vector("a")] == first["embeddings"][::-1]
    assert (first["cached"], again["cached"]) == (0, 2)
    assert again["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}
    assert (await embedded("a", tenant="u"))["cached"] == 0
    assert (await embedded("a"))["cached"] == 0
    assert server.work() == work + 2
    assert (await embedded("a", "new"))["cached"] == 1
    assert server.texts()[-1] == ["new"]
    assert (await embedded("a", tenant="t", cache=False))["cached"] == 0


async def test_a_known_answer_costs_no_call_and_never_crosses_tenants(server, worker_beside):
    await worker_beside(server)
    first = await answered("Why?")
    work = server.work()
    handle = await asyncio.to_thread(invoke_agent.delay, "Why?", **EXACT)
    pieces = await asyncio.to_thread(lambda: list(handle.stream(timeout=20)))
    [again] = await results(handle)
    assert server.work() == work
    assert "".join(pieces) == again["text"] == first["text"] == "".join(TOKENS)
    assert (first["cached"], again["cached"]) == (False, True)
    assert again["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}
    assert again["timings"]["load_s"] is None
    for different in ({"tenant": "t"}, {"cache": False}, {"agent": "coding"}, {"options": None}):
        assert not (await answered("Why?", **different))["cached"], different
    assert not (await answered("Why not?"))["cached"]


async def test_what_is_known_is_given_while_the_model_server_hangs_or_is_gone(worker_beside):
    async with Server() as server:
        await worker_beside(server)
        await embedded("a")
        await answered("Why?")
        for path in ("/api/tags", "/api/embed", "/api/chat", "/api/version", "/api/ps", "/api/generate"):
            server.holds(path)
        assert (await embedded("a"))["cached"] == 1
        assert (await answered("Why?"))["cached"]
    await until(lambda: not live_nodes(app)[0].healthy, "the worker has seen that its node is gone")
    assert (await embedded("a"))["embeddings"] == [vector("a")]
    assert (await answered("Why?"))["text"] == "".join(TOKENS)


async def test_after_a_pull_nothing_of_the_old_version_is_given(server, worker_beside):
    server.has_digest("one")
    await worker_beside(server)
    assert (await embedded("a"))["cached"] == 0
    assert (await embedded("a"))["cached"] == 1
    await answered("Why?")
    polls = len(server.asked("/api/tags"))
    server.has_digest("two")
    await until(lambda: len(server.asked("/api/tags")) >= polls + 2, "the worker has polled its node")
    assert (await embedded("a"))["cached"] == 0
    assert not (await answered("Why?"))["cached"]
    polls = len(server.asked("/api/tags"))
    server.has_digest("one")
    await until(lambda: len(server.asked("/api/tags")) >= polls + 2, "the worker has polled its node")
    assert (await embedded("a"))["cached"] == 1, "what the old version said is true of it still"


async def test_a_worker_that_stops_gives_embeddings_back_unharmed(server, worker_beside):
    worker = await worker_beside(server, GAELP_DRAIN_GRACE_S="0", name="first")
    server.holds("/api/embed")
    texts = [f"t{number}" for number in range(10)]
    handles = await asyncio.to_thread(publish, texts, cache=False)
    await until(lambda: len(live_nodes(app)[0].embedding) == len(texts), "all are seated")
    worker.send(signal.SIGTERM)
    await asyncio.to_thread(lambda: worker.wait(within_s=20))
    server.holds("/api/embed").set()
    await worker_beside(server, name="second")
    found = await results(*handles)
    assert [result["embeddings"] for result in found] == [[vector(text)] for text in texts]
    assert {result["attempts"] for result in found} == {1}, "no attempt was spent"
