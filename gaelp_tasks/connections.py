"""The only door to redis-py: connections, the names of our keys, and its errors in our words."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.settings import Settings, masked

__all__ = [
    "AsyncRedis",
    "Keys",
    "Refused",
    "Replica",
    "ScriptUnknown",
    "SyncRedis",
    "Trouble",
    "connect",
    "connect_async",
    "dial",
    "lost",
    "unavailable",
    "worded",
]

SyncRedis = redis.Redis
AsyncRedis = redis.asyncio.Redis

#: The server answered, with an error.
Refused = redis.ResponseError
#: The server does not know a script (any more).
ScriptUnknown = redis.exceptions.NoScriptError
#: The server is a replica now.
Replica = redis.exceptions.ReadOnlyError
#: No answer: the connection broke, or nothing came in time.
lost = (redis.ConnectionError, redis.TimeoutError, OSError)
#: Whatever redis-py itself raises.
Trouble = redis.RedisError
#: Any way in which Redis does not serve us.
unavailable = (redis.RedisError, OSError)

ANSWER_S = 30.0  #: longer than any read of ours blocks


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of our keys; docs/redis.md says who writes and reads each."""

    namespace: str = ""

    def stream(self, invocation_id: str) -> str:
        """Token stream of an invocation."""
        return f"{self.namespace}gaelp:stream:{invocation_id}"

    def claims(self, invocation_id: str) -> str:
        """How often an invocation was started: the fence."""
        return f"{self.namespace}gaelp:claims:{invocation_id}"

    def cancel(self, invocation_id: str) -> str:
        """A standing request to cancel an invocation."""
        return f"{self.namespace}gaelp:cancel:{invocation_id}"

    def node(self, worker: str, url: str = "*") -> str:
        """What a worker announces of one of its nodes; without `url`, or with '*', the pattern of all."""
        return f"{self.namespace}gaelp:node:{worker}:{url}"

    def cached(self, name: str) -> str:
        """An entry of the cache."""
        return f"{self.namespace}gaelp:cache:entry:{name}"

    @property
    def cache_index(self) -> str:
        """Every entry of the cache with its size, by the time it ends."""
        return f"{self.namespace}gaelp:cache:index"

    @property
    def cache_bytes(self) -> str:
        """The size of all entries of the cache."""
        return f"{self.namespace}gaelp:cache:bytes"

    @property
    def unacked(self) -> str:
        """What workers hold: tag -> record."""
        return f"{self.namespace}gaelp:unacked"

    @property
    def leases(self) -> str:
        """Until when each of them is held: tag -> Unix time in ms, by Redis' own clock."""
        return f"{self.namespace}gaelp:leases"

    def holder(self, invocation_id: str) -> str:
        """The tag under which a task is held, or was."""
        return f"{self.namespace}gaelp:holder:{invocation_id}"

    def deaths(self, invocation_id: str) -> str:
        """How many workers died while they held a task."""
        return f"{self.namespace}gaelp:deaths:{invocation_id}"

    @property
    def suspects(self) -> str:
        """Messages that have seen workers die, and run alone."""
        return f"{self.namespace}gaelp:suspects"

    @property
    def suspects_taker(self) -> str:
        """The holder that finishes what it has, to take one of them."""
        return f"{self.namespace}gaelp:suspects:taker"

    @property
    def queues(self) -> str:
        """Queues of models that may hold something."""
        return f"{self.namespace}gaelp:queues"

    @property
    def models(self) -> str:
        """Models that nodes have, as queues call them -> Unix time in ms when that was last said."""
        return f"{self.namespace}gaelp:models"

    def swept(self, tag: str) -> str:
        """The mark of a message that was taken from its holder."""
        return f"{self.namespace}gaelp:swept:{tag}"

    @property
    def parked(self) -> str:
        """What is not due: task id -> Unix time in ms."""
        return f"{self.namespace}gaelp:parked"

    @property
    def parked_messages(self) -> str:
        """The messages that are parked: task id -> record."""
        return f"{self.namespace}gaelp:parked:messages"

    @property
    def dead(self) -> str:
        """Dead letters: tag -> Unix time in ms since when."""
        return f"{self.namespace}gaelp:dead"

    @property
    def dead_messages(self) -> str:
        """The dead letters themselves: tag -> record."""
        return f"{self.namespace}gaelp:dead:messages"

    @property
    def bell(self) -> str:
        """Channel on which our publishers say that there is something to take."""
        return f"{self.namespace}gaelp:bell"

    @property
    def cancellations(self) -> str:
        """Channel on which cancel requests are called out."""
        return f"{self.namespace}gaelp:cancellations"

    def queue(self, name: str) -> str:
        """Celery's list for a queue."""
        return f"{self.namespace}{name}"


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "socket_connect_timeout": settings.connect_timeout_s,
        "health_check_interval": 10,
        "socket_timeout": ANSWER_S,
        "decode_responses": True,
        "protocol": 2,
    }


def connect(
    settings: Settings, *, name: str | None = None, text: bool = True, answer_s: float | None = None
) -> SyncRedis:
    """A synchronous client of the broker; connects at the first command, is safe to share between threads.

    `name` is how its connections are called in CLIENT LIST; without `text` it answers in bytes; `answer_s`
    bounds each wait, and a question is then asked once only.
    """
    url = settings.broker_url.replace("redis+socket://", "unix://")
    options = _options(settings) | {"client_name": name, "decode_responses": text}
    if answer_s is not None:
        options |= {"socket_timeout": answer_s, "socket_connect_timeout": answer_s}
    retry = redis.retry.Retry(NoBackoff(), 1 if answer_s is None else 0)
    return redis.Redis.from_url(url, retry=retry, **options)


def connect_async(settings: Settings) -> AsyncRedis:
    """An asynchronous client of the broker, for one event loop."""
    url = settings.broker_url.replace("redis+socket://", "unix://")
    return redis.asyncio.Redis.from_url(
        url, retry=redis.asyncio.retry.Retry(NoBackoff(), 1), **_options(settings)
    )


async def dial(settings: Settings) -> asyncio.StreamWriter:
    """A connection opened and logged in, for `Line` to speak on. Raises what redis-py raises."""
    pool: Any = connect_async(settings).connection_pool
    connection = pool.make_connection()
    await connection.connect()
    writer: asyncio.StreamWriter = connection._writer  # noqa: SLF001  redis-py opens no connection for others
    connection._reader = connection._writer = None  # noqa: SLF001  or it would close what is no longer its own
    return writer


@contextmanager
def worded(settings: Settings) -> Iterator[None]:
    """Turn what redis-py raises into BrokerUnavailable, one sentence that says what to do."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise BrokerUnavailable(
            f"Redis at {masked(settings.broker_url)} refuses our user or password: check GAELP_BROKER_URL."
        ) from error
    except unavailable as error:
        raise BrokerUnavailable(
            f"Redis at {masked(settings.broker_url)} does not serve us ({error}): start it, or set "
            "GAELP_BROKER_URL."
        ) from error
