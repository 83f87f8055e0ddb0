"""The only door to redis-py: connections, the names of our keys, and its errors in our words."""

import asyncio
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.retry
import redis.sentinel
from redis.backoff import NoBackoff

from gaelp_tasks.addresses import Sentinels, sentinels
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.settings import Settings, masked

__all__ = [
    "ANSWER_S",
    "NOT_NOW",
    "AsyncRedis",
    "Forbidden",
    "Full",
    "Refused",
    "Replica",
    "ScriptUnknown",
    "SyncRedis",
    "Trouble",
    "connect",
    "connect_async",
    "dial",
    "eviction_policy",
    "in_words",
    "lost",
    "sentinel_options",
    "sentinel_pool",
    "unavailable",
    "unsafe",
    "worded",
]

SyncRedis = redis.Redis
AsyncRedis = redis.asyncio.Redis

#: The server answered, with an error.
Refused = redis.ResponseError
#: Its ACL does not let this user do that.
Forbidden = redis.exceptions.NoPermissionError
#: The server does not know a script (any more).
ScriptUnknown = redis.exceptions.NoScriptError
#: The server has no room.
Full = redis.exceptions.OutOfMemoryError
#: The server is a replica now.
Replica = redis.exceptions.ReadOnlyError
#: No answer: the connection broke, or nothing came in time.
lost = (redis.ConnectionError, redis.TimeoutError, OSError)
#: Whatever redis-py itself raises.
Trouble = redis.RedisError
#: Any way in which Redis does not serve us.
unavailable = (redis.RedisError, OSError)
#: Names of errors for Celery's result backend: it refuses now, and will not later.
NOT_NOW = ("redis.exceptions.OutOfMemoryError", "redis.exceptions.ReadOnlyError")

ANSWER_S = 30.0  #: longer than any read of ours blocks
SENTINEL_S = 0.5  #: a sentinel that answers later is not waited for
KEEPS = "noeviction"  #: the only policy that loses no work when Redis is full


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
    # others' names of keys are told to us, too, and need not be text
    options = _options(settings) | {
        "client_name": name,
        "decode_responses": text,
        "encoding_errors": "replace",
    }
    if answer_s is not None:
        options |= {"socket_timeout": answer_s, "socket_connect_timeout": answer_s}
    options["retry"] = redis.retry.Retry(NoBackoff(), 1 if answer_s is None else 0)
    if found := sentinels(settings.broker_url):
        return redis.Redis.from_pool(sentinel_pool(found, **options))
    return redis.Redis.from_url(_plain(settings.broker_url), **options)


def connect_async(settings: Settings) -> AsyncRedis:
    """An asynchronous client of the broker, for one event loop."""
    options = _options(settings) | {"retry": redis.asyncio.retry.Retry(NoBackoff(), 1)}
    if found := sentinels(settings.broker_url):
        asked: Any = _AsyncLookout(found)
        made: Any = redis.asyncio.sentinel.SentinelConnectionPool  # untyped
        pool = made(found.master, asked, **_login(found), **options)
        return redis.asyncio.Redis.from_pool(pool)
    return redis.asyncio.Redis.from_url(_plain(settings.broker_url), **options)


async def dial(settings: Settings) -> asyncio.StreamWriter:
    """A connection opened and logged in, for `Line` to speak on. Raises what redis-py raises."""
    pool: Any = connect_async(settings).connection_pool
    connection = pool.make_connection()
    await connection.connect()
    writer: asyncio.StreamWriter = connection._writer  # noqa: SLF001  redis-py opens no connection for others
    connection._reader = connection._writer = None  # noqa: SLF001  or it would close what is no longer its own
    return writer


def _plain(url: str) -> str:
    return url.replace("redis+socket://", "unix://")


class _Told(NamedTuple):
    """What a sentinel says of the master."""

    epoch: int  #: of the configuration it knows: the newest is right
    address: tuple[str, int]


class _Lookout:
    """Asks every sentinel who the master is, each time anew; redis-py's own believes the first that answers.

    After a failover the others hear of it a second or two later.
    """

    def __init__(self, found: Sentinels) -> None:
        self._found = found

    def discover_master(self, name: str) -> tuple[str, int]:
        """Host and port. Raises MasterNotFoundError, or what all sentinels answered."""
        replies: list[Any] = []
        for place in self._found.places:
            try:
                with redis.Redis(**_call(self._found, place)) as client:
                    replies.append(
                        _ask(client.pipeline(transaction=False), name).execute(raise_on_error=False)
                    )
            except unavailable as error:
                replies.append(error)
        return _newest(name, replies)


class _AsyncLookout:
    """The same on an event loop; it asks all of them at once."""

    def __init__(self, found: Sentinels) -> None:
        self._found = found

    async def discover_master(self, name: str) -> tuple[str, int]:
        """See _Lookout."""
        asked = [self._ask(place, name) for place in self._found.places]
        return _newest(name, await asyncio.gather(*asked))

    async def _ask(self, place: tuple[str, int], name: str) -> Any:
        try:
            async with redis.asyncio.Redis(**_call(self._found, place)) as client:
                return await _ask(client.pipeline(transaction=False), name).execute(raise_on_error=False)
        except unavailable as error:
            return error


def sentinel_options(found: Sentinels) -> dict[str, Any]:
    """How to speak with the sentinels themselves: soon, once, and by their own names and passwords."""
    return {
        "socket_timeout": SENTINEL_S,
        "socket_connect_timeout": SENTINEL_S,
        "retry": None,
        "username": found.own_username or None,
        "password": found.own_password or None,
    }


def _call(found: Sentinels, place: tuple[str, int]) -> dict[str, Any]:
    host, port = place
    return {"host": host, "port": port, "decode_responses": True, "protocol": 2} | sentinel_options(found)


def _ask(pipe: Any, name: str) -> Any:
    # the address that MASTER tells lags behind, while only it tells the epoch
    pipe.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
    pipe.execute_command("SENTINEL", "MASTER", name)
    return pipe


def _newest(name: str, replies: Iterable[Any]) -> tuple[str, int]:
    told: list[_Told] = []
    troubles: list[Exception] = []
    for reply in replies:
        if isinstance(reply, Exception):
            troubles.append(reply)
        elif refused := next((answer for answer in reply if isinstance(answer, Exception)), None):
            troubles.append(refused)
        elif reply[0]:
            (host, port), state = reply
            state = dict(zip(state[::2], state[1::2], strict=True))
            told.append(_Told(int(state["config-epoch"]), (host, int(port))))
    if told:
        return max(told).address
    if denied := next((error for error in troubles if isinstance(error, redis.AuthenticationError)), None):
        raise denied
    why = "; ".join(sorted({str(error).rstrip(".") for error in troubles}))
    raise redis.sentinel.MasterNotFoundError(f"no sentinel tells the master of '{name}': {why}")


def _login(found: Sentinels) -> dict[str, Any]:
    """To the master."""
    return {"db": found.db, "username": found.username or None, "password": found.password or None}


def sentinel_pool(found: Sentinels, **options: Any) -> redis.sentinel.SentinelConnectionPool:
    """Connections to whoever is the master when each is opened; `options` go to each of them."""
    made: Any = redis.sentinel.SentinelConnectionPool  # untyped
    pool: redis.sentinel.SentinelConnectionPool = made(
        found.master, _Lookout(found), **options, **_login(found)
    )
    return pool


def eviction_policy(client: SyncRedis) -> str:
    """What Redis does when it is full; '' where it does not say. Raises what redis-py raises."""
    try:
        return str(client.config_get("maxmemory-policy").get("maxmemory-policy", ""))
    except Refused:  # ACL, or renamed by who hosts it
        return str(client.info("memory").get("maxmemory_policy", ""))


def unsafe(settings: Settings, policy: str) -> str:
    """Why no worker may run on a Redis with this policy, in one sentence; '' where one may."""
    if policy in {KEEPS, ""}:
        return ""
    return (
        f"Redis at {masked(settings.broker_url)} evicts keys when it is full ({policy}) and would lose "
        f"accepted work: set `maxmemory-policy {KEEPS}` in its redis.conf, and now by "
        f"`redis-cli CONFIG SET maxmemory-policy {KEEPS}`."
    )


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
        place = masked(settings.broker_url)
        tls = settings.broker_url.startswith("rediss:")
        if tls and (trouble := _tls_trouble(error)):
            raise BrokerUnavailable(f"Redis at {place}: {trouble}.") from error
        told = in_words(str(error))
        if told != str(error):
            raise BrokerUnavailable(f"Redis at {place} does not serve us: {told}.") from error
        # a server may hang up without a word where it misses a certificate, or wait where it speaks no TLS
        more = (
            ", check that this port speaks TLS, and name a certificate by ssl_certfile= and ssl_keyfile= "
            "there if it asks for one"
        )
        raise BrokerUnavailable(
            f"Redis at {place} does not serve us ({str(error).rstrip('.')}): start it, or set "
            f"GAELP_BROKER_URL{more if tls else ''}."
        ) from error


def in_words(told: str) -> str:
    """What Redis answered; where it is full, or forbids, with what to do about it, without a full stop."""
    if "maxmemory" in told:
        return "it is full: raise its maxmemory, or let workers finish some of what waits, and try again"
    if "NOPERM" in told or "has no permissions" in told:
        return f"its ACL forbids this user what is needed ({told}); docs/redis.md lists what each user may"
    return told


def _tls_trouble(error: BaseException) -> str:
    """What is wrong with a certificate and what to do about it; '' where it is something else."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({cause.verify_message}): name the file of its CA by "
                "ssl_ca_certs= in GAELP_BROKER_URL, or give Redis a certificate for this host name"
            )
        if isinstance(cause, FileNotFoundError | PermissionError):
            return f"a file that GAELP_BROKER_URL names cannot be read ({cause.strerror})"
        if isinstance(cause, ssl.SSLError):
            return (
                f"TLS failed ({cause.reason or cause}): check that this port speaks TLS, and name a "
                "certificate that it trusts by ssl_certfile= and ssl_keyfile= in GAELP_BROKER_URL"
            )
        cause = cause.__cause__ or cause.__context__
    return ""
