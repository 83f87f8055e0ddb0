"""The cache on a real Redis: bounded whatever is put in, and never a reason to fail."""

import asyncio
import uuid

import pytest

from gaelp_tasks.cache import Cache
from gaelp_tasks.connections import connect, connect_async
from gaelp_tasks.keys import Keys
from gaelp_tasks.settings import Settings

pytestmark = pytest.mark.redis

KB = 1024


class Place:
    """Caches of one namespace that nobody else uses, on the session's Redis."""

    def __init__(self, url: str) -> None:
        self.settings = Settings(broker_url=url)
        self.keys = Keys(f"{uuid.uuid4()}:")
        self.redis = connect_async(self.settings)
        self.sync = connect(self.settings)

    def cache(self, **settings) -> Cache:
        return Cache(self.redis, self.keys, self.settings.model_copy(update=settings))

    def entries(self) -> set[str]:
        prefix = self.keys.cached("")
        return {key.removeprefix(prefix) for key in self.sync.keys(f"{prefix}*")}

    def counted_bytes(self) -> int:
        return int(self.sync.get(self.keys.cache_bytes) or 0)

    def indexed(self) -> int:
        return self.sync.zcard(self.keys.cache_index)

    def used_bytes(self) -> int:
        """What Redis itself says that all of it takes."""
        return sum(
            self.sync.memory_usage(key, samples=0) or 0 for key in self.sync.keys(f"{self.keys.namespace}*")
        )


@pytest.fixture
async def place(broker):
    made = Place(broker.url)
    yield made
    for key in made.sync.keys(f"{made.keys.namespace}*"):
        made.sync.delete(key)
    made.sync.config_set("maxmemory", 0)
    await made.redis.aclose()
    made.sync.close()


async def test_what_is_kept_is_recalled_in_order_and_the_rest_is_a_miss(place):
    cache = place.cache()
    await cache.keep({"a": "1", "b": "ünï"})
    assert await cache.recall(["b", "x", "a", "b"]) == ["ünï", None, "1", "ünï"]
    assert await cache.recall([]) == []
    await cache.keep({})
    assert await place.cache().recall(["a"]) == ["1"], "another process finds it too"


async def test_thousands_of_entries_go_and_come_in_a_few_round_trips(place):
    cache = place.cache()
    known = {f"n{number}": str(number) for number in range(3000)}
    await cache.keep(known)
    assert await cache.recall(list(known)) == list(known.values())
    assert place.indexed() == 3000


async def test_every_key_of_the_cache_ends_by_itself(place):
    cache = place.cache(cache_ttl_s=50.0)
    await cache.keep({"a": "1"})
    for key in (place.keys.cached("a"), place.keys.cache_index, place.keys.cache_bytes):
        assert 0 < place.sync.pttl(key) <= 50_000, key


async def test_the_oldest_make_room_and_the_sum_stays_within_the_budget(place):
    budget = 64 * KB
    cache = place.cache(cache_max_bytes=budget)
    for number in range(400):
        await cache.keep({f"n{number:03}": "x" * (KB if number % 3 else 5 * KB)})
        assert place.counted_bytes() <= budget
    kept = sorted(int(name[1:]) for name in place.entries())
    assert kept == list(range(400 - len(kept), 400)), "the newest ones, without a gap"
    assert len(kept) > 10
    assert place.indexed() == len(kept)


@pytest.mark.parametrize("size", [4, 100, 8 * KB])
async def test_what_redis_really_uses_is_not_more_than_the_budget(place, size):
    budget = 256 * KB
    cache = place.cache(cache_max_bytes=budget)
    await cache.keep({uuid.uuid4().hex * 2: "x" * size for _ in range(1000)})
    assert budget / 3 < place.used_bytes() <= budget


async def test_an_entry_that_is_too_large_is_not_kept_and_harms_no_other(place):
    cache = place.cache(cache_entry_bytes=10, cache_max_bytes=100 * KB)
    await cache.keep({"a": "x" * 11, "b": "x" * 10})
    assert place.entries() == {"b"}
    wide = place.cache(cache_entry_bytes=200 * KB, cache_max_bytes=100 * KB)
    await wide.keep({"c": "x" * 150 * KB, "d": "1"})
    assert "c" not in place.entries()
    assert await wide.recall(["d"]) == ["1"]


async def test_keeping_the_same_again_counts_it_once(place):
    cache = place.cache()
    for _ in range(5):
        await cache.keep({"a": "1"})
    once = place.counted_bytes()
    await cache.keep({"b": "1"})
    assert place.counted_bytes() == 2 * once
    assert place.indexed() == 2


async def test_what_has_ended_no_longer_counts(place):
    brief = place.cache(cache_ttl_s=0.05)
    await brief.keep({f"n{number}": "x" * KB for number in range(50)})
    async with asyncio.timeout(10):
        while place.entries():
            await asyncio.sleep(0.01)
    cache = place.cache()
    await cache.keep({"a": "1"})
    assert place.indexed() == 1
    assert place.counted_bytes() < KB


async def test_a_count_that_was_lost_or_spoilt_by_hand_mends_itself(place):
    budget = 20 * KB
    cache = place.cache(cache_max_bytes=budget)
    await cache.keep({f"n{number}": "x" * KB for number in range(10)})
    place.sync.set(place.keys.cache_bytes, 10**12)
    await cache.keep({"a": "1"})
    assert place.counted_bytes() <= budget
    assert await cache.recall(["a"]) == ["1"]


async def test_a_redis_with_little_memory_gives_the_cache_a_quarter_at_most(place):
    cache = place.cache(cache_max_bytes=10**9)
    used = place.sync.info("memory")["used_memory"]
    place.sync.config_set("maxmemory", 4 * used)
    await cache.keep({f"n{number}": "x" * 8 * KB for number in range(used // (4 * KB))})
    assert 0 < place.counted_bytes() <= used


async def test_a_redis_that_is_nearly_full_gets_all_of_it_back(place):
    cache = place.cache()
    await cache.keep({f"n{number}": "x" * 8 * KB for number in range(200)})
    place.sync.config_set("maxmemory", place.sync.info("memory")["used_memory"] + 10_000)
    await cache.keep({"a": "1"})
    assert place.entries() == set()
    assert place.counted_bytes() == 0


async def test_an_entry_of_another_type_or_that_is_no_text_is_a_miss_and_is_mended(place):
    cache = place.cache()
    place.sync.rpush(place.keys.cached("list"), "x")
    assert await cache.recall(["list", "a"]) == [None, None]
    place.sync.execute_command("SET", place.keys.cached("bytes"), b"\xff\xfe")
    assert await cache.recall(["bytes"]) == [None]
    await cache.keep({"list": "1", "bytes": "2"})
    assert await cache.recall(["list", "bytes"]) == ["1", "2"]


async def test_without_redis_everything_is_a_miss_and_nothing_fails(place, caplog):
    gone = connect_async(Settings(broker_url="redis://127.0.0.1:1/0"))
    cache = Cache(gone, place.keys, place.settings)
    assert await cache.recall(["secret-a", "secret-b"]) == [None, None]
    await cache.keep({"secret-a": "1"})
    assert "cache" in caplog.text
    assert "secret" not in caplog.text
    await gone.aclose()


async def test_a_redis_that_hangs_is_a_miss_too(place, broker, monkeypatch):
    monkeypatch.setattr("gaelp_tasks.cache.ANSWER_S", 0.1)
    cache = place.cache()
    await cache.keep({"a": "1"})
    broker.freeze()
    try:
        assert await cache.recall(["a"]) == [None]
        await cache.keep({"b": "1"})
    finally:
        broker.thaw()
    monkeypatch.undo()
    assert await cache.recall(["a"]) == ["1"]
