"""Fakes for unit tests: a clock, a Redis in memory, one that loses replies, and what a run needs."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import fakeredis
import redis

from gaelp_tasks.cancellation import Runs
from gaelp_tasks.clients import BaseOllamaClient
from gaelp_tasks.connections import AsyncRedis, SyncRedis, connect, connect_async
from gaelp_tasks.keys import Keys
from gaelp_tasks.line import PlainLine
from gaelp_tasks.models import Invocation
from gaelp_tasks.retries import Outcome, RetryPolicy
from gaelp_tasks.settings import Settings
from gaelp_tasks.streams import Event, Piece, StreamWriter, TokenStream, parse
from gaelp_tasks.tasks.generation import Generation
from gaelp_tasks.tasks.resources import Node, Resources
from gaelp_tasks.tasks.walk import Run, walk

NODE = "http://node:11434"


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s

    def __call__(self) -> float:
        return self.at_s

    def advance(self, seconds: float) -> None:
        self.at_s += seconds


class FakeBroker:
    """One Redis in memory, with clients for threads and for loops."""

    def __init__(self) -> None:
        self._server = fakeredis.FakeServer()
        self.sync = fakeredis.FakeRedis(server=self._server, decode_responses=True)

    def client(self) -> AsyncRedis:
        """A client for the running loop; the caller closes it."""
        return fakeredis.FakeAsyncRedis(server=self._server, decode_responses=True)

    def goes_away(self) -> None:
        """Every command fails from now on as against a server that is gone."""
        self._server.connected = False

    def comes_back(self) -> None:
        self._server.connected = True

    def events(self, key: str) -> list[Event]:
        """Everything in a stream."""
        return [parse(entry_id, fields) for entry_id, fields in self.sync.xrange(key)]


class LosesReplies:
    """An asynchronous Redis client that executes its next pipelines and then loses the connection."""

    def __init__(self, client: AsyncRedis, *, times: int = 1) -> None:
        self._client = client
        self.times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def pipeline(self, transaction: bool = True) -> Any:
        pipe = self._client.pipeline(transaction=transaction)
        if self.times:
            self.times -= 1
            execute = pipe.execute

            async def lose(**how: Any) -> Any:
                await execute(**how)
                raise redis.ConnectionError("the reply was lost")

            pipe.execute = lose
        return pipe


class Workbench:
    """A process with fakes for everything outside: runs invocations on the loop that made it."""

    def __init__(self, loop: Any, broker: FakeBroker, client: BaseOllamaClient, **settings: Any) -> None:
        self.broker = broker
        self.now = Clock(1_700_000_000.0)
        self.tick = Clock(50.0)
        self.redis = broker.client()
        chosen = Settings(**settings)
        keys = Keys(chosen.namespace)
        self.at = Resources(
            settings=chosen,
            keys=keys,
            redis=self.redis,
            streams=StreamWriter(PlainLine(self.redis), keys, ttl_s=chosen.stream_ttl_s),
            client=client,
            runs=Runs(loop),
            policy=RetryPolicy(attempts=3, base_s=1.0, cap_s=8.0, snooze_s=2.0),
            nodes=(Node(NODE, client, lambda _: client),),
            worker="w@host",
            rng=Random(7),
            now=self.now,
            tick=self.tick,
        )

    def run(self, invocation_id: str = "i", *, attempt: int = 1, queued_s: float = 0.0, **asked: Any) -> Run:
        """A run of an invocation that was published `queued_s` ago."""
        return Run(
            id=invocation_id,
            asked=Invocation.parse({"prompt": "Hi"} | asked, max_prompt_bytes=1000),
            attempt=attempt,
            published_at=self.now() - queued_s,
            cancellation=self.at.runs.enter(invocation_id),
        )

    async def walk(self, run: Run) -> Outcome:
        assert isinstance(run.asked, Invocation)
        return await walk(run, Generation(run, run.asked, self.at), self.at)

    async def written(self) -> None:
        """Wait until every stream of this process is in Redis."""
        while self.at.streams._ready:
            await self.at.streams.flushed()

    def events(self, invocation_id: str = "i") -> list[Event]:
        return self.broker.events(self.at.keys.stream(invocation_id))

    def text(self, invocation_id: str = "i") -> str:
        return "".join(getattr(event, "text", "") for event in self.events(invocation_id))

    def end(self, invocation_id: str = "i") -> Mapping[str, Any]:
        """The facts of the stream's end; a stream without one fails the test."""
        last = self.events(invocation_id)[-1]
        assert type(last).__name__ == "End", last
        return last.facts


class StreamPlace:
    """One token stream that nobody else uses, with clients for both of its ends."""

    def __init__(self, client: AsyncRedis, sync: SyncRedis) -> None:
        self.redis = client
        self.sync = sync
        self.keys = Keys(f"{uuid.uuid4()}:")
        self.key = self.keys.stream("i")

    def writer(self, client: Any = None) -> StreamWriter:
        return StreamWriter(PlainLine(client or self.redis), self.keys, ttl_s=100.0)

    def entries(self) -> list[Event]:
        found: Any = self.sync.xrange(self.key)
        return [parse(entry_id, fields) for entry_id, fields in found]

    def text(self) -> str:
        return "".join(event.text for event in self.entries() if isinstance(event, Piece))

    async def sent(self, stream: TokenStream) -> None:
        """Wait until everything written so far is in Redis."""
        while stream._writer.pending(stream):
            await stream._writer.flushed()


@asynccontextmanager
async def stream_place(broker_url: str | None) -> AsyncIterator[StreamPlace]:
    """A stream on the Redis at this address, None for one in memory."""
    if broker_url is None:
        broker = FakeBroker()
        place = StreamPlace(broker.client(), broker.sync)
    else:
        chosen = Settings(broker_url=broker_url)
        place = StreamPlace(connect_async(chosen), connect(chosen))
    yield place
    place.sync.delete(place.key)
    await place.redis.aclose()
    place.sync.close()


async def turns(number: int = 20) -> None:
    """Let everything that could go on without waiting go on."""
    for _ in range(number):
        await asyncio.sleep(0)


def assert_one_sentence(text: str) -> None:
    """What a person reads about a mistake."""
    assert text.endswith(".")
    assert not text.endswith("..")
    assert "\n" not in text
    assert "pydantic" not in text
    assert "validation error" not in text
