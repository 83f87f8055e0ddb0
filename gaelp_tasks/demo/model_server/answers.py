"""Ollama's way of sending: one JSON object, or one per line while it grows."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from gaelp_tasks.demo.model_server.faults import ApiError

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

Answer = dict[str, Any]


def now() -> str:
    """The time as Ollama writes it, in UTC."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def line(answer: Answer) -> bytes:
    """One NDJSON line."""
    return _encode(answer).encode() + b"\n"


def whole(answer: Answer, status: int = 200) -> web.Response:
    """One JSON object as the whole answer; it also passes for a stream of one line."""
    return web.Response(body=line(answer), status=status, content_type="application/json")


async def lines(request: web.Request, parts: AsyncIterator[list[Answer]]) -> web.StreamResponse:
    """Send NDJSON, each part in one write.

    An error before the first part keeps its status, a later one becomes a line.
    """
    first = await anext(parts)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    await response.write(b"".join(map(line, first)))
    try:
        async for part in parts:
            await response.write(b"".join(map(line, part)))
    except ApiError as error:
        await response.write(line({"error": str(error)}))
    await response.write_eof()
    return response
