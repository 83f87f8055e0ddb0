"""A Redis in memory on a virtual clock, and the lines to it, on which commands and answers can get lost."""

import asyncio
import hashlib
import selectors
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from zlib import crc32

import fakeredis
import fakeredis._helpers
import fakeredis._socket._base
import fakeredis.commands_mixins.server_mixin
import redis
import redis.asyncio
import redis.retry
from fakeredis._clients._sync import FakeRedisConnection
from redis.backoff import NoBackoff

from gaelp_tasks.connections import Refused, SyncRedis

#: where fakeredis reads the time: for TIME, and for what expires
TIMED = (fakeredis._helpers, fakeredis._socket._base, fakeredis.commands_mixins.server_mixin)
HANDSHAKE = (b"HELLO", b"CLIENT", b"SELECT", b"AUTH")
DENIED_WHEN_FULL = (b"XADD", b"SET", b"LPUSH", b"RPUSH", b"MULTI")
FULL = "OOM command not allowed when used memory > 'maxmemory'."


class Fate(Enum):
    """What becomes of a command."""

    FINE = auto()
    DROPPED = auto()  #: never executed
    UNANSWERED = auto()  #: executed, and the answer is lost
    DIES_BEFORE = auto()  #: the process that sends it dies first
    DIES_AFTER = auto()  #: ... before it hears the answer


class ProcessDied(BaseException):
    """Nothing of the process goes on: not even what it would do about an error."""


class Clock:
    """True time, Unix seconds: what Redis' TIME tells."""

    def __init__(self, at_s: float = 1_700_000_000.0) -> None:
        self.at_s = at_s

    def __call__(self) -> float:
        return self.at_s


class LocalClock:
    """What a machine believes: `wall` jumps, `tick` never goes backwards and may run fast or slow."""

    def __init__(self, true: Clock, rate: float) -> None:
        self._true = true
        self._rate = rate
        self._began_s = true()
        self.ahead_s = 0.0

    def wall(self) -> float:
        return self._true() + self.ahead_s

    def tick(self) -> float:
        return (self._true() - self._began_s) * self._rate


def words(data: bytes) -> list[bytes]:
    """The words of packed commands."""
    parts = data.split(b"\r\n")
    return [part for before, part in pairwise(parts) if before[:1] == b"$"]


class Server:
    """One Redis; `before` and `after` are called around every command of a process."""

    asks_callers = False  #: planted: the scripts read the clock of whoever calls them

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._fake = fakeredis.FakeServer()
        self.raw = fakeredis.FakeRedis(server=self._fake, decode_responses=True)
        self._teach_sha1hex()
        self.full = False
        self.fate: Callable[[str, int], Fate] = lambda who, what: Fate.FINE
        self.before: Callable[[str], None] = lambda who: None
        self.after: Callable[[str, list[bytes]], None] = lambda who, said: None
        self.faults = 0  #: commands that did not go well so far
        self.restarts = 0
        self.caller_s: Callable[[str], float] = lambda who: clock()  #: what the clock of a process says

    def _teach_sha1hex(self) -> None:
        """fakeredis has no redis.sha1hex in scripts."""
        self.raw.eval("return 1", 0)  # it makes Lua's runtime at the first script
        runtime: Any = self._fake._lua_runtime
        runtime.globals()[b"redis"][b"sha1hex"] = lambda text: (
            hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        )

    @contextmanager
    def timed(self) -> Iterator[None]:
        """While it lasts, fakeredis lives by our clock."""
        virtual = SimpleNamespace(time=self.clock, monotonic=self.clock)
        patches = [patch.object(module, "time", virtual) for module in TIMED]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()

    def client(self, who: str, *, name: str | None = None, retries: int = 0, text: bool = True) -> SyncRedis:
        """A client as `connect` makes it, on a line that this server's fates befall."""
        line = type("Line", (ConnectionOf,), {"server": self, "who": who})
        pool = redis.ConnectionPool(
            connection_class=line,
            server=self._fake,
            client_name=name,
            decode_responses=text,
            protocol=2,
            retry=redis.retry.Retry(NoBackoff(), retries),
        )
        return redis.Redis(connection_pool=pool)

    def execute(self, who: str, commands: tuple[tuple[Any, ...], ...]) -> list[Any]:
        """Commands of an asynchronous line, errors among the replies. Raises ConnectionError, ProcessDied."""
        said = [str(word).encode() for command in commands for word in command]
        fate = self._fate(who, b" ".join(said))
        if self.full and any(str(command[0]).encode() in DENIED_WHEN_FULL for command in commands):
            return [Refused(FULL)] * len(commands)
        pipe = self.raw.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
        self.after(who, said)
        self._tell(fate)
        return replies

    def passes(self, who: str, said: list[bytes], send: Callable[[], None]) -> None:
        """Commands of a synchronous line; the same."""
        self.before(who)
        fate = self._fate(who, b" ".join(said))
        if self.full and said[0] in DENIED_WHEN_FULL and b"HDEL" not in said:
            raise Refused(FULL)
        if self.asks_callers:
            self.raw.set("caller", f"{self.caller_s(who):.3f}")
        send()
        self.after(who, said)
        self._tell(fate)

    def _fate(self, who: str, what: bytes) -> Fate:
        fate = self.fate(who, crc32(what))
        if fate is not Fate.FINE:
            self.faults += 1
        if fate is Fate.DIES_BEFORE:
            raise ProcessDied
        if fate is Fate.DROPPED:
            raise redis.ConnectionError("the command was lost")
        return fate

    def _tell(self, fate: Fate) -> None:
        if fate is Fate.DIES_AFTER:
            raise ProcessDied
        if fate is Fate.UNANSWERED:
            raise redis.ConnectionError("the answer was lost")

    def restart(self) -> None:
        """As with an append-only file: all data is there again, scripts and connections are not."""
        self.raw.script_flush()
        self.restarts += 1
        for socket in self._fake.sockets:
            socket._client_info["name"] = ""

    def knows(self, name: str) -> bool:
        """Whether a connection of that name is there."""
        return any(socket._client_info["name"] == name for socket in self._fake.sockets)

    # -- what is in it, read without commands: the judge looks after each

    def _value(self, key: str) -> Any:
        item = self._fake.dbs[0]._dict.get(key.encode())
        return None if item is None or (item.expireat and item.expireat < self.clock()) else item.value

    def exists(self, key: str) -> bool:
        return self._value(key) is not None

    def text(self, key: str) -> str | None:
        value = self._value(key)
        return None if value is None else value.decode()

    def hash(self, key: str) -> dict[bytes, bytes]:
        value = self._value(key)
        return {} if value is None else value._values

    def scores(self, key: str) -> dict[str, float]:
        value = self._value(key)
        return {} if value is None else {name.decode(): score for name, score in value.items()}

    def lists(self) -> Iterator[tuple[str, list[bytes]]]:
        """Every list there is."""
        for key, item in self._fake.dbs[0]._dict.items():
            if isinstance(item.value, list):
                yield key.decode(), item.value


class ConnectionOf(FakeRedisConnection):
    """A connection of fakeredis on which things go wrong."""

    server: Server
    who: str
    opened_at = 0  #: after how many restarts of the server

    def _connect(self) -> Any:
        self.opened_at = self.server.restarts
        return super()._connect()

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        chunks = [command] if isinstance(command, bytes) else list(command)
        said = words(b"".join(chunks))
        if self.opened_at != self.server.restarts:
            self.disconnect()
            self.server.faults += 1
            raise redis.ConnectionError("the server was restarted")
        if said[0] in HANDSHAKE and said[:2] != [b"CLIENT", b"LIST"]:
            super().send_packed_command(chunks, check_health)
            return
        try:
            self.server.passes(
                self.who, said, lambda: super(ConnectionOf, self).send_packed_command(chunks, check_health)
            )
        except (redis.ConnectionError, ProcessDied):
            self.disconnect()
            raise


class NeverWaits(selectors.SelectSelector):
    """Time passes only when the simulation says so."""

    def select(self, timeout: float | None = None) -> Any:
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """The loop of all processes of a simulation, on the true clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(NeverWaits())
        self._true = clock

    def time(self) -> float:
        return self._true()

    def settle(self) -> None:
        """Run until nothing can go on without a step of the simulation."""
        while True:
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready:
                return


class AsyncLine:
    """The asynchronous questions of one process; each is put when the simulation delivers it."""

    def __init__(self, server: Server, who: str, loop: Loop) -> None:
        self._server = server
        self._who = who
        self._loop = loop
        self.asked: deque[tuple[tuple[Any, ...], asyncio.Future[list[Any]]]] = deque()
        self.dead = False

    def ask(self, *commands: Any) -> "asyncio.Future[list[Any]]":
        answer = self._loop.create_future()
        if not self.dead:
            self.asked.append((commands, answer))
        return answer

    def deliver(self) -> None:
        """Put the oldest question. Raises ProcessDied."""
        commands, answer = self.asked.popleft()
        try:
            replies = self._server.execute(self._who, commands)
        except redis.ConnectionError as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(replies)


class AsyncClient(redis.asyncio.Redis):
    """redis-py's asynchronous methods, spoken on such a line."""

    def __init__(self, line: AsyncLine) -> None:
        super().__init__()
        self._line = line

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        [reply] = await self._line.ask(args)
        if isinstance(reply, Exception):
            raise reply
        return reply
