"""A model server in a process of its own, where a run of an invocation is seen to start.

`python -m faults.history.model_server JOURNAL` prints its address. The prompt is the invocation's id, the
number of tokens and the seconds between two; the worker names itself in a header. The first token is one
that no other call is given, so the text tells which run an answer came from.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from faults.history.journal import Journal
from faults.history.probes import PATH
from gaelp_tasks.demo.parts import Child, Part
from gaelp_tasks.tasks.resuming import QUESTION
from support.scripted_server import Handler, Reply, Request, ScriptedServer

WORKER_HEADER = "X-History-Worker"


def prompt(task_id: str, tokens: int, pace_s: float) -> str:
    """What to ask for."""
    return json.dumps([task_id, tokens, pace_s])


@contextmanager
def model_server(folder: Path, journal: Path) -> Iterator[str]:
    """Its address while the block runs."""
    command = (sys.executable, "-m", "faults.history.model_server", str(journal))
    log = folder / "model-server.log"
    child = Child(Part(name="model server", command=command, env=PATH, log=log))
    try:
        yield child.wait_for(lambda child: child.output().strip() or None)
    finally:
        child.stop()


def chat_of(server: ScriptedServer, journal: Journal) -> Handler:
    """What answers /api/chat."""

    async def chat(request: Request, reply: Reply) -> None:
        asked = request.json()["messages"][-1]["content"]
        # whether it goes on from a text that was cut, which it never does, or whether it is alive
        if asked == QUESTION or not asked.startswith("["):
            reply.head()
            reply.token("no")
            reply.last(eval_count=1)
            reply.end()
            return
        task_id, tokens, pace_s = json.loads(asked)
        run = uuid4().hex
        journal.started(task_id, run, request.headers[WORKER_HEADER.lower()])
        server.requests.clear()  # a long run would keep them all
        reply.head()
        reply.token(run)
        for _ in range(tokens - 1):
            await asyncio.sleep(pace_s)
            if reply.gone.is_set():
                return
            reply.token(" on")
        reply.last(eval_count=tokens)
        reply.end()

    return chat


async def main(journal: Journal) -> None:
    async with ScriptedServer() as server:
        server.on("/api/chat", chat_of(server, journal))
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Journal(Path(sys.argv[1]))))
