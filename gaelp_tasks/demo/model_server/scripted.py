"""`gaelp demo scripted`: an Ollama whose models are scripts, for trying a cluster without any model.

It has slots, loads and a waiting line as Ollama has, but says the question again, one word a token: who reads
an answer knows which question it is of. A vector is the digest of its text.
"""

import argparse
import asyncio
import hashlib
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from aiohttp import web
from aiohttp.typedefs import Handler

from gaelp_tasks.demo.model_server.answers import Answer, lines, now, whole
from gaelp_tasks.demo.model_server.faults import ApiError
from gaelp_tasks.demo.model_server.seats import Seats
from gaelp_tasks.demo.model_server.wire import ChatRequest, EmbedRequest, GenerateRequest, NamedRequest

__all__ = ["Script", "build_app", "main", "words"]

CHAT, EMBED = "script:latest", "script-embed:latest"
FAMILIES = {CHAT: "llama", EMBED: "bert"}
VERSION = "0.0.0-gaelp-scripted"
SIZE_BYTES = 64 * 1024**2  #: that a model claims to take
MOST_WORDS = 10_000  #: in one answer
DIMENSIONS = 8
WAITING = 512  #: requests in the line of a model
KEEP_ALIVE_S = 300.0
FOR_EVER = timedelta(days=36_500)


def words(question: str, most: int | None, begun: str = "") -> tuple[list[str], str]:
    """The answer as tokens, and why it ends; without those that it has `begun` with.

    With `most` it has exactly so many more, the question said again and again; None or negative: said once.
    """
    said = re.findall(r"\S+\s*", f"You said: {question.strip() or 'nothing'} ")
    there = len(begun.split())
    if most is None or most < 0:
        return said[there:MOST_WORDS], "stop"
    most = min(most, MOST_WORDS)
    return (said * math.ceil((there + most) / len(said)))[there : there + most], "length"


class Script:
    """The models of one server: which are loaded, until when, and who has a seat."""

    def __init__(self, *, num_parallel: int, token_s: float, load_s: float) -> None:
        self.num_parallel = num_parallel
        self.token_s = token_s
        self.load_s = load_s
        self.seats = {name: Seats(num_parallel, WAITING) for name in FAMILIES}
        self._until: dict[str, datetime] = {}

    def find(self, name: str) -> str:
        """The full name of a model. Raises ApiError 404 in Ollama's words."""
        full = name if ":" in name else f"{name}:latest"
        if full not in FAMILIES:
            raise ApiError(404, f'model "{name}" not found, try pulling it first')
        return full

    def loaded(self) -> dict[str, datetime]:
        """The models in memory, and when each leaves it."""
        at = datetime.now(UTC)
        self._until = {
            name: until for name, until in self._until.items() if until > at or self.seats[name].busy
        }
        return self._until

    async def load(self, name: str, keep_alive_s: float | None) -> int:
        """Have a model in memory for so long; gives what that took, in ns. 0 takes it out again."""
        took_ns = 0
        if keep_alive_s == 0:
            self._until.pop(name, None)
            return took_ns
        if name not in self.loaded():
            began = time.perf_counter_ns()
            await asyncio.sleep(self.load_s)
            took_ns = time.perf_counter_ns() - began
        kept_s = KEEP_ALIVE_S if keep_alive_s is None else keep_alive_s
        self._until[name] = datetime.now(UTC) + (
            FOR_EVER if math.isinf(kept_s) else timedelta(seconds=kept_s)
        )
        return took_ns


SCRIPT = web.AppKey("script", Script)


def build_app(script: Script) -> web.Application:
    """The application."""
    app = web.Application(middlewares=[_errors_as_json], client_max_size=64 * 1024**2)
    app[SCRIPT] = script
    app.add_routes(
        [
            web.get("/api/version", _version),
            web.get("/api/tags", _tags),
            web.get("/api/ps", _ps),
            web.post("/api/show", _show),
            web.post("/api/pull", _pull),
            web.post("/api/chat", _chat),
            web.post("/api/generate", _generate),
            web.post("/api/embed", _embed),
        ]
    )
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return whole({"error": str(error)}, error.status)
    except web.HTTPException as error:
        return whole({"error": f"{request.method} {request.path}: {error.reason}"}, error.status)


async def _version(request: web.Request) -> web.Response:
    return whole({"version": VERSION, "num_parallel": request.app[SCRIPT].num_parallel})


async def _tags(_request: web.Request) -> web.Response:
    return whole({"models": [_listed(name) for name in FAMILIES]})


async def _ps(request: web.Request) -> web.Response:
    loaded = request.app[SCRIPT].loaded()
    more = {"size_vram": 0, "context_length": 2048}
    return whole(
        {
            "models": [
                {**_listed(name), **more, "expires_at": until.isoformat()} for name, until in loaded.items()
            ]
        }
    )


async def _show(request: web.Request) -> web.Response:
    name = request.app[SCRIPT].find(NamedRequest.parse(await request.read()).asked_for)
    can = ["embedding"] if name == EMBED else ["completion"]
    return whole({"capabilities": can, "details": _listed(name)["details"], "model_info": {}})


async def _pull(request: web.Request) -> web.Response:
    request.app[SCRIPT].find(NamedRequest.parse(await request.read()).asked_for)
    return whole({"status": "success"})


async def _chat(request: web.Request) -> web.StreamResponse:
    asked = ChatRequest.parse(await request.read())
    script, name = request.app[SCRIPT], request.app[SCRIPT].find(asked.model)
    _require(name, CHAT, "chat")
    asked.refuse_what_is_missing(images=any(message.images for message in asked.messages))
    if not asked.messages:
        await script.load(name, asked.keep_alive)
        reason = "unload" if asked.keep_alive == 0 else "load"
        return whole({"model": asked.model, "created_at": now(), "done": True, "done_reason": reason})
    question = next((one.content for one in reversed(asked.messages) if one.role == "user"), None) or ""
    most = asked.options.num_predict if asked.options else None
    begun = (asked.messages[-1].content or "") if asked.messages[-1].role == "assistant" else ""
    async with aclosing(_spoken(script, name, asked, *words(question, most, begun))) as parts:
        if asked.stream:
            return await lines(request, parts)
        answers = [answer async for part in parts for answer in part]
    text = "".join(answer["message"]["content"] for answer in answers)
    return whole({**answers[-1], "message": {"role": "assistant", "content": text}})


async def _spoken(
    script: Script, name: str, asked: ChatRequest, said: Sequence[str], reason: str
) -> AsyncGenerator[list[Answer], None]:
    began = time.perf_counter_ns()
    async with script.seats[name].take():
        load_ns = await script.load(name, asked.keep_alive or None)
        for word in said:
            await asyncio.sleep(script.token_s)
            yield [_piece(asked.model, word, done=False)]
        told = sum(len((message.content or "").split()) for message in asked.messages)
        last = _piece(asked.model, "", done=True)
        yield [
            {
                **last,
                "done_reason": reason,
                "total_duration": time.perf_counter_ns() - began,
                "load_duration": load_ns,
                "prompt_eval_count": told,
                "eval_count": len(said),
            }
        ]


def _piece(model: str, word: str, *, done: bool) -> Answer:
    message = {"role": "assistant", "content": word}
    return {"model": model, "created_at": now(), "message": message, "done": done}


async def _generate(request: web.Request) -> web.Response:
    asked = GenerateRequest.parse(await request.read())
    name = request.app[SCRIPT].find(asked.model)
    if asked.prompt:
        raise ApiError(400, "this server answers /api/chat only; here it loads and unloads")
    await request.app[SCRIPT].load(name, asked.keep_alive)
    reason = "unload" if asked.keep_alive == 0 else "load"
    return whole({"model": asked.model, "response": "", "done": True, "done_reason": reason})


async def _embed(request: web.Request) -> web.Response:
    asked = EmbedRequest.parse(await request.read())
    script, name = request.app[SCRIPT], request.app[SCRIPT].find(asked.model)
    _require(name, EMBED, "embed")
    texts = asked.texts()
    if not texts and asked.keep_alive == 0:
        await script.load(name, 0)
    else:
        async with script.seats[name].take():
            await script.load(name, asked.keep_alive)
    vectors = [[byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]] for text in texts]
    told = sum(len(text.split()) for text in texts)
    return whole({"model": asked.model, "embeddings": vectors, "prompt_eval_count": told})


def _require(name: str, wanted: str, what: str) -> None:
    if name != wanted:
        raise ApiError(400, f'"{name}" does not support {what}')


def _listed(name: str) -> Answer:
    family = FAMILIES[name]
    return {
        "name": name,
        "model": name,
        "size": SIZE_BYTES,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "modified_at": "2026-01-01T00:00:00Z",
        "details": {"format": "script", "family": family, "families": [family], "parameter_size": "0"},
    }


def main(argv: Sequence[str]) -> int:
    """Serve; print one JSON line when ready; 0 after SIGTERM or SIGINT, 2 for a port that cannot be had."""
    parser = argparse.ArgumentParser(
        prog="gaelp demo scripted", description=f"An Ollama with the scripted models {CHAT} and {EMBED}."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--num-parallel", type=_positive, default=1, help="slots per model (default 1)")
    parser.add_argument("--token-s", type=_seconds, default=0.02, help="seconds a token (default 0.02)")
    parser.add_argument("--load-s", type=_seconds, default=0.2, help="seconds a load (default 0.2)")
    given = parser.parse_args(argv)
    script = Script(num_parallel=given.num_parallel, token_s=given.token_s, load_s=given.load_s)
    try:
        asyncio.run(_serve(build_app(script), given.host, given.port))
    except (OSError, OverflowError) as error:
        print(f"error: {given.host}:{given.port} cannot be listened on: {error}", file=sys.stderr)  # noqa: T201  a sentence for whoever typed it
        return 2
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return number


async def _serve(app: web.Application, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        address = runner.addresses[0]
        print(json.dumps({"url": f"http://{host}:{address[1]}", "pid": os.getpid()}), flush=True)  # noqa: T201  the protocol
        await stop.wait()
    finally:
        await runner.cleanup()
