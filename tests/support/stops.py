"""A run that processes with a Talker each stop and take up, one after another, on one Redis."""

import asyncio

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.readers import Reading
from gaelp_tasks.retries import Snooze
from gaelp_tasks.streams import Start
from support.fakes import FakeBroker, Workbench
from support.talker import Talker

SOON_S = 10
WHOLE = "".join(Talker().pieces)
LENGTH = len(Talker().pieces)
ASKED = {"prompt": "Tell me a story", "model": "talker", "options": {"temperature": 0}}


class Place:
    """Processes with a Talker each, one after another, on one Redis."""

    def __init__(self, **chosen):
        self.broker = FakeBroker()
        self.chosen = chosen
        self.benches = []

    def bench(self, client=None):
        loop = asyncio.get_running_loop()
        self.benches.append(Workbench(loop, self.broker, client or Talker(), **self.chosen))
        return self.benches[-1]

    async def stopped(self, at, *, client=None, reason=Reason.PREEMPTION, **asked):
        """A run that was stopped with so many pieces out; no reason: its process died."""
        made = self.bench(client)
        made.at.client.stop_at = at
        walking = asyncio.create_task(made.walk(made.run(**(ASKED | asked))))
        await asyncio.wait_for(made.at.client.waits.wait(), SOON_S)
        if reason is None:
            await made.written()
            walking.cancel()
            await asyncio.gather(walking, return_exceptions=True)
        else:
            made.at.runs.stop("i", reason)
            assert await asyncio.wait_for(walking, SOON_S) == Snooze(0.0, f"stopped: {reason}")
        return made

    async def runs(self, *, client=None, **asked):
        """The process that runs it next, and the outcome."""
        made = self.bench(client)
        return made, await asyncio.wait_for(made.walk(made.run(**(ASKED | asked))), SOON_S)

    @property
    def events(self):
        return self.benches[-1].events()

    def starts(self):
        return [event for event in self.events if isinstance(event, Start)]

    def read(self):
        """What a reader sees who has been there from the beginning."""
        reading = Reading()
        return "".join(map(reading.take, self.events))

    async def close(self):
        for made in self.benches:
            await made.redis.aclose()


async def undisturbed():
    alone = Place()
    _, outcome = await alone.runs()
    await alone.close()
    return outcome.result


async def starts_over(place, **how):
    made, outcome = await place.runs(**how)
    assert outcome.result.text == WHOLE
    assert made.at.client.asked[-1][0][-1].role == "user"
    assert not place.starts()[-1].resumes
    assert outcome.result.usage == (await undisturbed()).usage
