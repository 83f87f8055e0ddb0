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


def connect(settings: Settings) -> SyncRedis:
    """A synchronous client of the broker; connects at the first command, is safe to share between threads."""
    url = settings.broker_url.replace("redis+socket://", "unix://")
    return redis.Redis.from_url(url, retry=redis.retry.Retry(NoBackoff(), 1), **_options(settings))


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
