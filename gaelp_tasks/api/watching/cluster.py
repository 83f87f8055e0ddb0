"""The whole cluster, looked at once for all operators who watch it, and not at all where none does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any

from gaelp_tasks.api.watching.hub import notice
from gaelp_tasks.api.watching.mailbox import Mailbox
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.services.watching import cluster_now
from gaelp_tasks.survey import Survey

__all__ = ["ClusterWatch"]

EVERY_S = 2.0


class ClusterWatch:
    """Who watches the cluster from this process. `run` is its life; all on one event loop."""

    def __init__(self, app: GaelpApp) -> None:
        self._survey = Survey(app)
        self._looking = asyncio.Lock()  #: a survey is for one thread at a time
        self._watchers: set[Mailbox] = set()
        self._somebody = asyncio.Event()
        self._away = False  #: Redis

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Mailbox]:
        """A mailbox that gets the state of the cluster every two seconds while the block lasts."""
        mailbox = Mailbox(most_events=2)  # what is older is of no use
        self._watchers.add(mailbox)
        self._somebody.set()
        try:
            yield mailbox
        finally:
            self._watchers.discard(mailbox)
            if not self._watchers:
                self._somebody.clear()

    async def look(self, event: str) -> str:
        """The state of the cluster now, as JSON. Raises BrokerUnavailable."""
        async with self._looking:
            figures: Any = await asyncio.to_thread(self._survey.take)
        return json.dumps({"event": event, "at": time(), "data": cluster_now(figures)})

    async def run(self) -> None:
        """Look while somebody watches, until cancelled."""
        while True:
            await self._somebody.wait()
            try:
                text = await self.look("status")
            except BrokerUnavailable:
                text = "" if self._away else notice("interrupted")
                self._away = True
            else:
                if self._away:
                    self._tell(notice("resumed"))
                self._away = False
            if text:
                self._tell(text)
            await asyncio.sleep(EVERY_S)

    def _tell(self, text: str) -> None:
        for mailbox in self._watchers:
            mailbox.put(text)
