"""One reader of Redis for all watchers of this process: what is told of an agent goes to each of them.

A watcher hears of an agent from the moment when Redis has confirmed that this process listens for it. While
Redis is away its watchers are told so, and when it is back, that some events may have been told to nobody.
"""

import asyncio
import json
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic, time
from typing import Any

from gaelp_tasks.api.watching.mailbox import Mailbox
from gaelp_tasks.connections import connect_async, unavailable
from gaelp_tasks.keys import Keys
from gaelp_tasks.settings import Settings

__all__ = ["Hub", "notice"]

ALWAYS = "all"  #: a channel that is always listened to: a connection without one is none
CONFIRM_S = 5.0  #: for Redis to confirm; then a watcher is told that it is away
LOOK_S = 0.2  #: an end waits for so long at most
PING_S = 5.0
DEAF_S = 15.0  #: nothing heard for so long, not even an answer to a ping: the line is dead
AGAIN_S = (0.1, 0.2, 0.5, 1.0, 2.0)  #: before each try to reach Redis; then always the last

logger = logging.getLogger(__name__)


def notice(event: str, **more: Any) -> str:
    """Something that this process itself has to tell, as JSON."""
    return json.dumps({"event": event, "at": time()} | more)


class Hub:
    """The watchers of this process. `run` is its life; everything else is called on the same event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(settings.namespace)
        self._watchers: defaultdict[str, set[Mailbox]] = defaultdict(set)
        self._ear: Any = None  #: redis-py's PubSub, None while Redis is away
        self._asking = asyncio.Lock()
        self._asked: set[str] = set()  #: channels that Redis was asked for, on this ear
        self._open: Counter[str] = Counter()  #: how often each is asked for and not confirmed
        self._confirmed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._interrupted: set[Mailbox] = set()  #: who was told that nothing is heard

    def __len__(self) -> int:
        return sum(map(len, self._watchers.values()))

    @asynccontextmanager
    async def watching(self, agent_id: int | str) -> AsyncIterator[Mailbox]:
        """A mailbox that gets all that is told of an agent from now on, while the block lasts."""
        channel, mailbox = self._keys.told(agent_id), Mailbox()
        self._watchers[channel].add(mailbox)
        try:
            await self._settle()
            try:
                async with asyncio.timeout(CONFIRM_S if self._ear else 0):
                    await self._confirmed[channel].wait()
            except TimeoutError:
                self._interrupt(mailbox)
            yield mailbox
        finally:
            self._interrupted.discard(mailbox)
            self._watchers[channel].discard(mailbox)
            if not self._watchers[channel]:
                del self._watchers[channel]
                await self._settle()

    async def ready(self) -> None:
        """Return once Redis is listened to."""
        await self._confirmed[self._keys.told(ALWAYS)].wait()

    async def run(self) -> None:
        """Listen until cancelled, to a Redis that may go and come back."""
        tries = 0
        while True:
            try:
                async with connect_async(self._settings) as redis, redis.pubsub() as ear:
                    await self._listen(ear)
            except unavailable as error:
                tries = 0 if self._ear else tries
                if not tries:
                    logger.warning("Watchers hear nothing: Redis does not serve us (%s).", error)
            finally:
                self._ear = None
            for mailbox in self._mailboxes():
                self._interrupt(mailbox)
            await asyncio.sleep(AGAIN_S[min(tries, len(AGAIN_S) - 1)])
            tries += 1

    async def _listen(self, ear: Any) -> None:
        """Until the connection breaks. Raises what redis-py raises, and TimeoutError for a dead line."""
        self._asked.clear()
        self._open.clear()
        for event in self._confirmed.values():
            event.clear()
        await ear.subscribe(self._keys.told(ALWAYS))
        self._asked.add(self._keys.told(ALWAYS))
        self._ear = ear
        await self._settle()
        heard_at = pinged_at = monotonic()
        me: Any = asyncio.current_task()
        while not me.cancelling():  # redis-py now and then swallows it
            message = await ear.get_message(timeout=LOOK_S)
            now = monotonic()
            if message is not None:
                heard_at = now
                self._hear(message)
            elif now - heard_at > DEAF_S:
                raise TimeoutError(f"nothing was heard for {DEAF_S:g} s")
            if now - pinged_at > PING_S:
                pinged_at = now
                await ear.ping()
        raise asyncio.CancelledError

    def _hear(self, message: Any) -> None:
        channel = str(message["channel"])
        if message["type"] == "message":
            for mailbox in tuple(self._watchers.get(channel, ())):
                mailbox.put(message["data"])
        elif message["type"] == "subscribe":
            if not self._open[channel]:  # redis-py has connected anew, unasked
                self._interrupted.update(self._watchers.get(channel, ()))
            self._open[channel] = max(0, self._open[channel] - 1)
            if not self._open[channel]:
                self._confirm(channel)

    def _confirm(self, channel: str) -> None:
        self._confirmed[channel].set()
        for mailbox in self._interrupted.intersection(self._watchers.get(channel, ())):
            self._interrupted.discard(mailbox)
            mailbox.put(notice("resumed"))
            mailbox.tell_again()

    async def _settle(self) -> None:
        """Ask Redis for what is wanted, and no more for what is not."""
        with suppress(*unavailable):  # who listens meets the same
            async with self._asking:
                if (ear := self._ear) is None:
                    return
                wanted = {*self._watchers, self._keys.told(ALWAYS)}
                new, old = wanted - self._asked, self._asked - wanted
                if old:
                    self._asked -= old
                    for channel in old:
                        self._confirmed.pop(channel, None)
                    await ear.unsubscribe(*old)
                if new:
                    self._asked |= new
                    self._open.update(new)
                    await ear.subscribe(*new)

    def _interrupt(self, mailbox: Mailbox) -> None:
        if mailbox not in self._interrupted:
            self._interrupted.add(mailbox)
            mailbox.put(notice("interrupted"))

    def _mailboxes(self) -> list[Mailbox]:
        return [one for those in self._watchers.values() for one in those]
