"""A model server that spends no time thinking: `python source.py [PORT]` prints its port, then serves Ollama.

The prompt says what to send, as `{"tokens": 100, "pace_s": 0.05}`; a pace of 0 is as fast as can be.
Any other prompt, such as a probe's, gets one token.
Each token is the time at which it leaves, in nanoseconds of the monotonic clock, which processes share.
"""

import asyncio
import json
import random
import sys
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from aiohttp import web

__all__ = ["MODEL", "prompt"]

MODEL = "clock:latest"
MODELS = {"models": [{"name": MODEL, "size": 1, "digest": "0", "capabilities": ["completion"]}]}
LINE = (
    f'{{"model":"{MODEL}","created_at":"2026-01-01T00:00:00.000000Z",'
    '"message":{"role":"assistant","content":"%d "},"done":false}\n'
)
LAST = LINE.replace("%d ", "").replace("false", 'true,"done_reason":"stop","eval_count":%d')
BREATH = 64  #: tokens without a pace between two turns for other requests


def prompt(tokens: int, pace_s: float) -> str:
    """What to ask for."""
    return json.dumps({"tokens": tokens, "pace_s": pace_s})


async def chat(request: web.Request) -> web.StreamResponse:
    text = (await request.json())["messages"][-1]["content"]
    asked = json.loads(text if text.startswith("{") else prompt(1, 0))
    tokens, pace_s = int(asked["tokens"]), float(asked["pace_s"])
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    clock = asyncio.get_running_loop().time
    started = clock() + random.random() * pace_s  # noqa: S311  streams do not march in step
    for number in range(tokens):
        if pace_s:
            await asyncio.sleep(started + number * pace_s - clock())
        elif number % BREATH == 0:
            await asyncio.sleep(0)
        await response.write((LINE % monotonic_ns()).encode())
    await response.write((LAST % tokens).encode())
    await response.write_eof()
    return response


def says(document: dict[str, Any]) -> Callable[[web.Request], Any]:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(document)

    return answer


def server() -> web.Application:
    app = web.Application()
    app.router.add_post("/api/chat", chat)
    app.router.add_post("/api/show", says({"capabilities": ["completion"]}))
    app.router.add_get("/api/tags", says(MODELS))
    app.router.add_get("/api/ps", says(MODELS))
    app.router.add_get("/api/version", says({"version": "0.0.0"}))
    return app


async def main(port: int = 0) -> None:
    runner = web.AppRunner(server(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
