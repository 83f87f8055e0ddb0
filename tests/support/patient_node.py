"""A scripted node whose answers wait for a word of the test, whichever thread says it."""

import asyncio

from gaelp_tasks import app
from gaelp_tasks.streams import End, parse
from support.scripted_server import Reply, Request, ScriptedServer


class PatientNode(ScriptedServer):
    """Each answer is one word at once, and a second when the test has said `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self._told = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.on("/api/chat", self._chat_slowly)

    async def _chat_slowly(self, request: Request, reply: Reply) -> None:
        reply.head()
        reply.token("One")
        waits = [asyncio.ensure_future(one.wait()) for one in (self._told, reply.gone)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()
        reply.token(" two")
        reply.last()
        reply.end()

    def go_on(self) -> None:
        """From now on."""
        self._loop.call_soon_threadsafe(self._told.set)


def ends(invocation_id: str) -> int:
    """How many ends the stream of an invocation has: it was answered so often."""
    entries = app.redis.xrange(app.keys.stream(invocation_id))
    return sum(isinstance(parse(*entry), End) for entry in entries)
