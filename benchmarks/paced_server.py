"""A model server as fast as `pace.py` says: `python paced_server.py [PORT]` prints its port, serves Ollama.

The prompt says what to write, as `{"job": "b-17", "tokens": 64, "prompt_tokens": 32}`; any other gets a few
tokens. Token number i is made of the prompt and i alone, so an answer that was cut and goes on after its text
(a last message of the assistant) can be checked to be unbroken; that text is read again like a prompt.
GET /bench/made tells the tokens written so far, GET /bench/record all requests.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web
from pace import Asking, Slots

__all__ = ["MODEL", "WIDTH", "Asked", "asked_in", "prompt", "text_of"]

MODEL = "paced:latest"
WIDTH = 5  #: characters of a token
OTHERS = {"tokens": 24, "prompt_tokens": 16}  #: of any other prompt, such as a probe's
LISTED = {
    "name": MODEL,
    "model": MODEL,
    "size": 10_000_000,
    "digest": hashlib.sha256(MODEL.encode()).hexdigest(),
    "details": {"family": "llama", "format": "gguf"},
    "capabilities": ["completion"],
}
SHOWN = {
    "capabilities": ["completion"],
    "details": LISTED["details"],
    "model_info": {
        "general.architecture": "llama",
        "llama.block_count": 4,
        "llama.context_length": 4096,
        "llama.embedding_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
    },
}
RUNNING = {"name": MODEL, "model": MODEL, "size": 20_000_000, "size_vram": 0, "context_length": 4096}
LINE = (
    f'{{"model":"{MODEL}","created_at":"2026-01-01T00:00:00.000000Z",'
    '"message":{"role":"assistant","content":"%s"},"done":false}\n'
)


def prompt(job: str, *, tokens: int, prompt_tokens: int) -> str:
    """What to ask for."""
    return json.dumps({"job": job, "tokens": tokens, "prompt_tokens": prompt_tokens})


def token(of: str, number: int) -> str:
    return f" {hashlib.blake2b(f'{number} {of}'.encode(), digest_size=2).hexdigest()}"


def text_of(of: str, tokens: int) -> str:
    """The first tokens of the answer to a prompt."""
    return "".join(token(of, number) for number in range(tokens))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request wants."""

    prompt: str
    job: str  #: '' of any other prompt
    first: int  #: number of the first token that is missing
    known: int  #: characters of that token that are there already
    tokens: int  #: to be written
    prompt_tokens: int  #: to be read, the text so far included
    cut: bool  #: num_predict is less than the answer

    def piece(self, number: int) -> str:
        """The text of the token that is written as this number, from 0."""
        whole = token(self.prompt, self.first + number)
        return whole[self.known :] if number == 0 else whole


def asked_in(body: dict[str, Any]) -> Asked:
    """Read the body of /api/chat."""
    messages = body["messages"]
    so_far = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    said = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
    plan = json.loads(said) if said.startswith("{") else OTHERS
    first, known = divmod(len(so_far), WIDTH)
    missing = max(0, int(plan["tokens"]) - first)
    limit = int((body.get("options") or {}).get("num_predict", -1))
    tokens = min(missing, limit) if limit >= 0 else missing
    return Asked(
        prompt=said,
        job=str(plan.get("job", "")),
        first=first,
        known=known,
        tokens=tokens,
        prompt_tokens=int(plan["prompt_tokens"]) + first + bool(known),
        cut=tokens < missing,
    )


class Server:
    """Slots that run by the clock of the event loop, and what becomes of each request."""

    def __init__(self) -> None:
        self.slots = Slots()
        self.record: list[tuple[Asked, Asking]] = []
        self.loaded = False
        self._wanted: dict[Asking, asyncio.Queue[int | None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Hand out what was written until now, and come back at the next token."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        for made in self.slots.advance(loop.time()):
            if (queue := self._wanted.get(made.asking)) is not None:
                queue.put_nowait(made.number)
        soon = self.slots.next_at()
        self._timer = None if soon is None else loop.call_at(soon, self.look)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = asked_in(await request.json())
        asking = Asking(asked.prompt_tokens, asked.tokens)
        self.record.append((asked, asking))
        self.loaded = True
        written = self._wanted[asking] = asyncio.Queue()
        self.look()
        self.slots.join(asking)
        self.look()
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        try:
            number = await written.get()
            await response.prepare(request)  # Ollama's headers too come with the first token
            while number is not None:
                await response.write((LINE % asked.piece(number)).encode())
                number = await written.get() if number + 1 < asked.tokens else None
            await response.write(last_line(asked, asking))
            await response.write_eof()
        finally:
            del self._wanted[asking]
            if asking.ended_at is None:  # the client has left
                self.look()
                self.slots.leave(asking)
                self.look()
        return response

    async def generate(self, request: web.Request) -> web.Response:
        self.loaded = (await request.json()).get("keep_alive") != 0
        reason = "load" if self.loaded else "unload"
        return web.json_response({"model": MODEL, "response": "", "done": True, "done_reason": reason})

    async def running(self, _request: web.Request) -> web.Response:
        return web.json_response({"models": [RUNNING] if self.loaded else []})

    async def made(self, _request: web.Request) -> web.Response:
        self.look()
        return web.json_response(self._count())

    async def told(self, _request: web.Request) -> web.Response:
        self.look()
        requests = [
            asdict(asking) | {"job": asked.job, "first": asked.first} for asked, asking in self.record
        ]
        return web.json_response(self._count() | {"requests": requests})

    def _count(self) -> dict[str, Any]:
        busy = len(self.slots.taken) + len(self.slots.waiting)
        return {"at": asyncio.get_running_loop().time(), "made": self.slots.made, "busy": busy}


def last_line(asked: Asked, asking: Asking) -> bytes:
    """What ends an answer."""
    last = {
        "model": MODEL,
        "created_at": "2026-01-01T00:00:00.000000Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length" if asked.cut else "stop",
        "prompt_eval_count": asked.prompt_tokens,
        "eval_count": asking.made,
    }
    return json.dumps(last).encode() + b"\n"


def says(document: dict[str, Any]) -> Callable[[web.Request], Any]:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(document)

    return answer


def application(server: Server) -> web.Application:
    app = web.Application()
    app.router.add_post("/api/chat", server.chat)
    app.router.add_post("/api/generate", server.generate)
    app.router.add_get("/api/ps", server.running)
    app.router.add_post("/api/show", says(SHOWN))
    app.router.add_get("/api/tags", says({"models": [LISTED]}))
    app.router.add_get("/api/version", says({"version": "0.0.0"}))
    app.router.add_get("/bench/made", server.made)
    app.router.add_get("/bench/record", server.told)
    return app


async def main(port: int = 0) -> None:
    runner = web.AppRunner(application(Server()), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
