"""How fast somebody may ask: a bucket for each user in Redis, spent in small shares; failures by address.

A replica takes a tenth of a second's worth of a user's bucket at a time and spends it without Redis, so a
request seldom waits for an answer, and all replicas together stay below the rate. Where Redis does not
answer nobody is held up.
"""

import asyncio
import hashlib
import ipaddress
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from gaelp_tasks.connections import AsyncRedis, unavailable
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.caller import Caller

__all__ = ["Failures", "Rates"]

logger = logging.getLogger(__name__)

SHARE_S = 0.1  #: of the rate in one share
HOLDS_S = 1.0  #: a share that was not spent by then is lost
ANSWER_S = 0.5  #: for Redis
AWAY_S = 10.0  #: Redis is not asked after it did not answer
MOST = 10_000  #: users, or addresses, that are remembered
MINUTE_S = 60.0

#: KEYS 1 the bucket. ARGV 1 tokens a second, 2 tokens it holds, 3 tokens wanted. Gives how many it had, and
#: the milliseconds until there is one.
TAKE = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local rate, size, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(kept[1] or size), tonumber(kept[2] or now)
tokens = math.min(size, tokens + math.max(0, now - at) * rate / 1000)
local got = math.min(want, math.floor(tokens))
tokens = tokens - got
redis.call('HSET', KEYS[1], 'tokens', string.format('%.3f', tokens), 'at', now)
redis.call('PEXPIRE', KEYS[1], math.ceil(size / rate * 1000) + 1000)
local wait = 0
if got < 1 then wait = math.ceil((1 - tokens) / rate * 1000) end
return {got, wait}
"""


@dataclass(slots=True)
class _Share:
    """What this replica may still spend for one user."""

    tokens: int = 0
    until_s: float = 0.0
    none_until_s: float = 0.0  #: Redis said so
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Rates:
    """The buckets of users. `per_s` 0: any number of requests."""

    def __init__(
        self,
        redis: AsyncRedis,
        keys: Keys,
        per_s: float,
        burst: int,
        tick: Callable[[], float] = monotonic,
    ) -> None:
        self._keys = keys
        self._per_s = per_s
        self._burst = burst
        self._tick = tick
        self._script = redis.register_script(TAKE)
        self._want = max(1, math.ceil(min(per_s * SHARE_S, burst)))
        self._shares: OrderedDict[tuple[str, str], _Share] = OrderedDict()
        self._away_until_s = 0.0

    async def wait_s(self, caller: Caller) -> float:
        """0 where this request may go on; else the seconds until one may."""
        if not self._per_s:
            return 0.0
        share = self._share(caller)
        if (wait := self._spend(share)) is not None:
            return wait
        async with share.asking:
            if (wait := self._spend(share)) is None:
                await self._ask(caller, share)
                wait = self._spend(share)
        return wait or 0.0

    def _share(self, caller: Caller) -> _Share:
        who = caller.tenant, caller.name
        share = self._shares.get(who)
        if share is None:
            share = self._shares[who] = _Share()
            if len(self._shares) > MOST:
                self._shares.popitem(last=False)
        return share

    def _spend(self, share: _Share) -> float | None:
        """None where Redis must be asked."""
        now = self._tick()
        if share.tokens > 0 and now < share.until_s:
            share.tokens -= 1
            return 0.0
        return share.none_until_s - now if now < share.none_until_s else None

    async def _ask(self, caller: Caller, share: _Share) -> None:
        now = self._tick()
        got, wait_ms = self._want, 0
        if now >= self._away_until_s:
            try:
                async with asyncio.timeout(ANSWER_S):
                    got, wait_ms = await self._script(
                        keys=[self._keys.rate(_name(caller))], args=[self._per_s, self._burst, self._want]
                    )
            except (TimeoutError, *unavailable) as error:
                self._away_until_s = self._tick() + AWAY_S
                logger.warning("Redis keeps no rates (%s): nobody is held up.", type(error).__name__)
        share.tokens, share.until_s = int(got), self._tick() + HOLDS_S
        share.none_until_s = 0.0 if got else self._tick() + max(1, int(wait_ms)) / 1000


def _name(caller: Caller) -> str:
    return hashlib.sha256(f"{caller.tenant}\0{caller.name}".encode()).hexdigest()[:32]


class Failures:
    """Failed sign-ins by address, an IPv6 network of 64 bits as one: a bucket for each, in this process."""

    def __init__(self, per_minute: int, tick: Callable[[], float] = monotonic) -> None:
        self._most = per_minute
        self._per_s = per_minute / MINUTE_S
        self._tick = tick
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> spent, at

    def wait_s(self, address: str) -> float:
        """0 where it may fail once more; else the seconds until it may."""
        if not self._spent:  # as nearly always
            return 0.0
        left = self._most - self._now(_place(address))
        return 0.0 if left >= 1 else (1 - left) / self._per_s

    def note(self, address: str) -> None:
        """It has failed."""
        place = _place(address)
        self._spent[place] = min(self._most, self._now(place) + 1), self._tick()
        self._spent.move_to_end(place)
        if len(self._spent) > MOST:
            self._spent.popitem(last=False)

    def _now(self, place: str) -> float:
        spent, at = self._spent.get(place, (0.0, 0.0))
        return max(0.0, spent - (self._tick() - at) * self._per_s)


def _place(address: str) -> str:
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
