"""The plain way to stream through Redis, to compare with: one XADD per token, awaited, by redis-py.

`python relay.py REDIS_URL NODE_URL` takes jobs from a list, as a worker does: `{"key", "prompt"}`.
"""

import asyncio
import json
import sys
from typing import Any

import aiohttp
import redis.asyncio
from source import MODEL

__all__ = ["JOBS"]

JOBS = "bench:relay:jobs"


async def relay(session: aiohttp.ClientSession, node: str, store: redis.asyncio.Redis, job: Any) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": job["prompt"]}]}
    async with session.post(f"{node}/api/chat", json=body) as response:
        async for line in response.content:
            chunk = json.loads(line)
            await store.xadd(job["key"], {"end": 1} if chunk["done"] else {"t": chunk["message"]["content"]})
    await store.expire(job["key"], 60)


async def main(redis_url: str, node: str) -> None:
    store = redis.asyncio.Redis.from_url(redis_url)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as running:
        print("ready", flush=True)
        while True:
            if taken := await store.blpop([JOBS], timeout=1):
                running.create_task(relay(session, node, store, json.loads(taken[1])))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
