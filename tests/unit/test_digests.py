"""Digests of models: asked for seldom, shared by all who ask, kept while a node does not answer."""

import asyncio

import pytest

from gaelp_tasks.clients import BaseOllamaClient, ModelInfo
from gaelp_tasks.errors import NodeUnreachable
from gaelp_tasks.tasks import digests
from gaelp_tasks.tasks.digests import Digests
from support.fakes import Clock, turns

FRESH_S = 1.0


class Lister(BaseOllamaClient):
    """A node that lists one model; `go` lets it answer."""

    def __init__(self, digest="d1", model="m:latest"):
        self.digest = digest
        self.model = model
        self.asked = 0
        self.dead = False
        self.go = asyncio.Event()
        self.go.set()

    async def generate_embedding(self, text):
        raise NotImplementedError

    def chat(self, messages, **options):
        raise NotImplementedError

    async def models(self):
        self.asked += 1
        digest = self.digest
        await self.go.wait()
        if self.dead:
            raise NodeUnreachable("gone")
        return (ModelInfo(name=self.model, digest=digest),)


@pytest.fixture
def clock():
    return Clock(100.0)


def known(clock, **nodes):
    return Digests(lambda: list(nodes.items()), clock, fresh_s=FRESH_S)


async def test_a_digest_is_asked_for_once_while_it_is_fresh(clock):
    node = Lister()
    made = known(clock, n=node)
    assert await made.of("m") == await made.of("m:latest") == "d1"
    assert node.asked == 1
    clock.advance(FRESH_S + 0.1)
    node.digest = "d2"
    assert await made.of("m") == "d2"
    assert node.asked == 2


async def test_a_model_that_the_node_lacks_or_a_node_without_digests_has_none(clock):
    assert await known(clock, n=Lister()).of("other") == ""
    assert await known(clock, n=Lister(digest="")).of("m") == ""
    assert await known(clock).of("m") == ""


async def test_nodes_that_have_different_versions_have_none(clock):
    assert await known(clock, a=Lister("d1"), b=Lister("d1")).of("m") == "d1"
    assert await known(clock, a=Lister("d1"), b=Lister("d2")).of("m") == ""
    assert await known(clock, a=Lister("d1"), b=Lister("d2", model="x:latest")).of("m") == "d1"


async def test_what_a_poll_learnt_need_not_be_asked(clock):
    node = Lister()
    made = known(clock, n=node)
    made.learn("n", (ModelInfo(name="m:latest", digest="d9"),), clock())
    assert await made.of("m") == "d9"
    assert node.asked == 0
    made.learn("n", (ModelInfo(name="m:latest", digest="d1"),), clock() - 0.5)
    assert await made.of("m") == "d9", "an answer to an older question changes nothing"


async def test_what_was_told_is_there_without_asking_however_old(clock):
    node = Lister()
    made = known(clock, n=node)
    assert made.told("m") is None, "nobody has told anything yet"
    await made.of("m")
    clock.advance(FRESH_S * 10)
    assert (made.told("m:latest"), made.told("other")) == ("d1", "")
    assert node.asked == 1


async def test_many_who_ask_at_once_share_one_question(clock):
    node = Lister()
    node.go.clear()
    made = known(clock, n=node)
    waiting = [asyncio.create_task(made.of("m")) for _ in range(50)]
    await turns()
    node.go.set()
    assert {*await asyncio.gather(*waiting)} == {"d1"}
    assert node.asked == 1


async def test_a_dead_node_keeps_what_it_told_last(clock):
    node = Lister()
    made = known(clock, n=node)
    await made.of("m")
    node.dead = True
    clock.advance(3600.0)
    assert await made.of("m") == "d1"


async def test_a_client_that_raises_anything_is_a_miss(clock):
    class Broken(Lister):
        async def models(self):
            raise ZeroDivisionError

    made = known(clock, n=Broken())
    assert await made.of("m") == ""
    assert not await made.is_still("d1", "m", "n", since=clock())


async def test_a_node_that_hangs_is_waited_for_once(clock, monkeypatch):
    monkeypatch.setattr(digests, "WAIT_S", 0.05)
    node = Lister()
    made = known(clock, n=node)
    await made.of("m")
    node.go.clear()
    clock.advance(3600.0)
    assert await made.of("m") == "d1"
    monkeypatch.setattr(digests, "WAIT_S", 3600.0)
    async with asyncio.timeout(10):
        assert await made.of("m") == "d1"
    assert node.asked == 2
    node.go.set()
    await turns()
    clock.advance(FRESH_S + 0.1)
    node.digest = "d2"
    assert await made.of("m") == "d2", "it answers again"


async def test_what_was_made_counts_only_if_the_node_tells_the_same_afterwards(clock):
    node = Lister()
    made = known(clock, n=node)
    digest = await made.of("m")
    clock.advance(0.1)
    made_at = clock()
    assert await made.is_still(digest, "m", "n", since=made_at)
    assert node.asked == 2, "the answer before the making does not tell"
    assert await made.is_still(digest, "m", "n", since=made_at)
    assert node.asked == 2
    clock.advance(0.1)
    node.digest = "d2"
    assert not await made.is_still(digest, "m", "n", since=clock())


async def test_what_a_dead_or_unknown_node_made_is_not_kept(clock):
    node = Lister()
    made = known(clock, n=node)
    await made.of("m")
    clock.advance(0.1)
    node.dead = True
    assert not await made.is_still("d1", "m", "n", since=clock())
    assert not await made.is_still("d1", "m", "elsewhere", since=0.0)
    assert not await made.is_still("", "m", "n", since=0.0)


async def test_a_question_that_was_under_way_before_is_not_taken_for_one_after(clock):
    node = Lister()
    node.go.clear()
    made = known(clock, n=node)
    early = asyncio.create_task(made.of("m"))
    await turns()
    clock.advance(0.1)
    node.digest = "d2"
    late = asyncio.create_task(made.is_still("d1", "m", "n", since=clock()))
    await turns()
    node.go.set()
    await early
    assert await late is False
    assert node.asked == 2
