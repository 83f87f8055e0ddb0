"""A node of the soak: history's model server, whose memory somebody else can take.

`python -m faults.soak.model_server JOURNAL PORT` prints its address. While it is `crowd`ed a neighbour's
model takes all of the declared budget (/api/ps), as another user of a real server would.
"""

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Any

import requests

from faults.history.journal import Journal
from faults.history.model_server import chat_of
from support.scripted_server import CHAT_MODEL, Handler, Reply, Request, ScriptedServer

BUDGET_BYTES = 1024**3  #: GAELP_MEMORY_BUDGET of the workers
FILE_BYTES, LOADED_BYTES = 10_000_000, 20_000_000
CROWD = "/soak/crowd"
ANSWERS_S = 5.0

LISTED = {
    "name": CHAT_MODEL,
    "model": CHAT_MODEL,
    "size": FILE_BYTES,
    "digest": hashlib.sha256(CHAT_MODEL.encode()).hexdigest(),
    "details": {"family": "llama", "format": "gguf"},
    "capabilities": ["completion"],
}
SHOWN = {
    "capabilities": ["completion"],
    "details": LISTED["details"],
    "model_info": {
        "general.architecture": "llama",
        "llama.block_count": 4,
        "llama.context_length": 2048,
        "llama.embedding_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4,
    },
}


def running(name: str, size_bytes: int) -> dict[str, Any]:
    """A model in memory, as /api/ps lists it."""
    return {"name": name, "model": name, "size": size_bytes, "size_vram": 0, "context_length": 2048}


def crowd(url: str, *, on: bool) -> None:
    """Let the neighbour take all memory of the node at this address, or give it back."""
    requests.post(url + CROWD, json={"on": on}, timeout=ANSWERS_S).raise_for_status()


class Memory:
    """What is loaded on the node."""

    def __init__(self, server: ScriptedServer, journal: Journal) -> None:
        self._loaded = self._crowded = False
        self._chat = chat_of(server, journal)

    async def chat(self, request: Request, reply: Reply) -> None:
        self._loaded = True
        await self._chat(request, reply)

    async def generate(self, request: Request, reply: Reply) -> None:
        self._loaded = request.json().get("keep_alive") != 0
        reason = "load" if self._loaded else "unload"
        reply.whole({"model": CHAT_MODEL, "response": "", "done": True, "done_reason": reason})

    async def ps(self, _request: Request, reply: Reply) -> None:
        models = [running(CHAT_MODEL, LOADED_BYTES)] if self._loaded else []
        if self._crowded:
            models.append(running("neighbour:latest", BUDGET_BYTES))
        reply.whole({"models": models})

    async def crowd(self, request: Request, reply: Reply) -> None:
        self._crowded = request.json()["on"]
        reply.whole({"on": self._crowded})


def says(document: Any) -> Handler:
    """Always the same answer."""

    async def answer(_request: Request, reply: Reply) -> None:
        reply.whole(document)

    return answer


async def main(journal: Journal, port: int) -> None:
    async with ScriptedServer(port=port) as server:
        memory = Memory(server, journal)
        server.on("/api/chat", memory.chat)
        server.on("/api/generate", memory.generate)
        server.on("/api/ps", memory.ps)
        server.on("/api/tags", says({"models": [LISTED]}))
        server.on("/api/show", says(SHOWN))
        server.on(CROWD, memory.crowd)
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Journal(Path(sys.argv[1])), int(sys.argv[2])))
