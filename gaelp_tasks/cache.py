"""The cache of vectors and answers in Redis: bounded in bytes and time, and never a reason to fail.

Redis runs `noeviction`, so the cache itself sees to it that it stays small: one script writes an entry, notes
its size in an index by age, and takes the oldest out, in one round trip. Where Redis has a `maxmemory`, the
cache keeps to a quarter of it, and gives everything back when nine tenths are used.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from gaelp_tasks.connections import AsyncRedis, unavailable
from gaelp_tasks.keys import Keys
from gaelp_tasks.settings import Settings

__all__ = ["Cache", "fingerprint"]

logger = logging.getLogger(__name__)

ANSWER_S = 1.0  #: Redis may take this long; then it is a miss
READ_AT_ONCE = 256  #: entries per round trip
WRITE_AT_ONCE = 32  #: entries per script, so that it holds Redis up for a millisecond at most

#: KEYS: the index, members "<bytes> <key>" by the time they end; their sum in bytes.
#: ARGV: budget in bytes, time to live in ms, then key, value, key, value ...
KEEP = """
local BESIDE = 512  -- bytes that Redis spends on an entry beside its value
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000  -- in ms; to the microsecond, so that entries keep their order
local ttl = tonumber(ARGV[2])
local budget = tonumber(ARGV[1])
local memory = redis.pcall('INFO', 'memory')
if type(memory) == 'string' then
  local most = tonumber(string.match(memory, 'maxmemory:(%d+)') or 0)
  local used = tonumber(string.match(memory, 'used_memory:(%d+)') or 0)
  if most > 0 then budget = math.min(budget, most / 4) end
  if most > 0 and used > most * 0.9 then budget = 0 end
end
local before = tonumber(redis.call('GET', KEYS[2]) or 0)
local total = before
local forgotten = 0
local function forget(members)
  for _, member in ipairs(members) do
    local size, key = string.match(member, '^(%d+) (.*)$')
    redis.call('ZREM', KEYS[1], member)
    if key then
      redis.call('DEL', key)
      total = total - tonumber(size)
    end
    forgotten = forgotten + 1
  end
  return #members
end
local function make_room(needed)
  while total + needed > budget do
    if forgotten > 2000 then return false end  -- the next one goes on
    if forget(redis.call('ZRANGE', KEYS[1], 0, 19)) == 0 then
      total = 0
      return needed <= budget
    end
  end
  return true
end
forget(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1000))
make_room(0)
for i = 3, #ARGV, 2 do
  local key, value = ARGV[i], ARGV[i + 1]
  local size = #value + BESIDE
  if redis.call('EXISTS', key) == 1 then
    redis.call('SET', key, value, 'PX', ttl)
  elseif make_room(size) then
    redis.call('SET', key, value, 'PX', ttl)
    redis.call('ZADD', KEYS[1], now + ttl, string.format('%d %s', size, key))
    total = total + size
  end
end
if total ~= before then redis.call('SET', KEYS[2], string.format('%d', total)) end
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
"""


def fingerprint(*facts: Any) -> str:
    """A name that only the same JSON values share. Raises TypeError for what JSON cannot say."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Texts by name. Whatever is wrong with Redis or an entry, it is as if the entry were not there."""

    def __init__(self, redis: AsyncRedis, keys: Keys, settings: Settings) -> None:
        self._redis = redis
        self._keys = keys
        self._budget_bytes = int(settings.cache_max_bytes)
        self._entry_bytes = int(settings.cache_entry_bytes)
        self._ttl_ms = int(settings.cache_ttl_s * 1000)
        self._keep = redis.register_script(KEEP)

    async def recall(self, names: Sequence[str]) -> list[str | None]:
        """What is known under these names, None for each that is not."""
        found: list[Any] = []
        try:
            async with asyncio.timeout(ANSWER_S):
                for start in range(0, len(names), READ_AT_ONCE):
                    some = names[start : start + READ_AT_ONCE]
                    found += await self._redis.mget([self._keys.cached(name) for name in some])
        except (*unavailable, UnicodeDecodeError) as error:  # TimeoutError is an OSError
            logger.warning("The cache cannot be read, which counts as a miss: %s", type(error).__name__)
        return found + [None] * (len(names) - len(found))

    async def keep(self, known: Mapping[str, str]) -> None:
        """Remember these; the oldest entries make room, one that is too large is not kept."""
        entries = [(name, value) for name, value in known.items() if len(value) <= self._entry_bytes]
        try:
            async with asyncio.timeout(ANSWER_S):
                for start in range(0, len(entries), WRITE_AT_ONCE):
                    some = entries[start : start + WRITE_AT_ONCE]
                    given = [part for name, value in some for part in (self._keys.cached(name), value)]
                    await self._keep(
                        keys=[self._keys.cache_index, self._keys.cache_bytes],
                        args=[self._budget_bytes, self._ttl_ms, *given],
                    )
        except unavailable as error:
            logger.warning("The cache cannot be written: %s", type(error).__name__)
