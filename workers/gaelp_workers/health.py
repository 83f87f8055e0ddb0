"""Health by a model's own answer: a server may list its models while every call of one hangs."""

import asyncio
import logging
from collections.abc import Sequence
from typing import NamedTuple

from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.errors import NodeBusy, NodeError
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.meter import Meter
from gaelp_tasks.tasks.resources import Node, Resources

__all__ = ["Pulse", "Question", "question"]

logger = logging.getLogger(__name__)

ANSWER_S = 60.0  #: for one token of a model in memory; others who use the server may be served first
LEAVING_S = 2.0  #: a model that stays no longer than this may be gone when the question arrives


class Question(NamedTuple):
    """What to ask of a node."""

    model: str
    keep_alive_s: float  #: what is left of the time that its runs gave it; negative: for ever


def question(
    now: float, meter: Meter, asked_at: float, settings: Settings, loaded: Sequence[str]
) -> Question | None:
    """The question that is due, None while there is none.

    Asked is only a model of ours that is in memory: nothing is loaded for a question, and none keeps a model
    in memory for longer than the runs wanted. Whoever was heard lately needs none.
    """
    every_s, stays_s = settings.probe_interval_s, settings.keep_alive_s
    heard_at = asked_at if meter.heard_at is None else meter.heard_at
    if not every_s or now - max(heard_at, asked_at) < every_s:
        return None
    ours = meter.model or settings.default_model
    model = next((name for name in loaded if ours and canonical(name) == canonical(ours)), "")
    left_s = stays_s - (now - heard_at)
    if not model or (stays_s >= 0 and left_s < LEAVING_S):
        return None
    return Question(model, left_s if stays_s >= 0 else stays_s)


class Pulse:
    """Whether a node's model answers; one question at a time, beside the polls, which never wait for it."""

    def __init__(self, at: Resources, node: Node) -> None:
        self.trouble = ""  #: one sentence; '' when well
        self._at = at
        self._node = node
        self._asked_at = at.tick()
        self._asked = ""  #: the model
        self._asking: asyncio.Task[None] | None = None

    def feel(self, loaded: Sequence[str], *, free: bool) -> None:
        """At each poll: ask if it is due and a slot is free, and forget a trouble that is over."""
        meter, now = self._node.meter, self._at.tick()
        heard_since = meter.heard_at is not None and meter.heard_at > self._asked_at
        if self.trouble and (heard_since or self._asked not in loaded):
            self._settle("")
        if not free or (self._asking is not None and not self._asking.done()):
            return
        due = question(now, meter, self._asked_at, self._at.settings, loaded)
        if due is not None:
            self._asked_at, self._asked = now, due.model
            self._asking = asyncio.get_running_loop().create_task(self._ask(due))

    async def _ask(self, due: Question) -> None:
        trouble = ""
        try:
            async with asyncio.timeout(ANSWER_S), self._node.lasting(due.keep_alive_s) as client:
                await client.probe(due.model)
        except NodeBusy:
            pass  # it is at work, for others
        except TimeoutError:
            trouble = (
                f"{self._node.url} has '{due.model}' in memory, and that did not say one token within "
                f"{ANSWER_S:g} s: if nobody else uses that server, restart it."
            )
        except NodeError as error:
            trouble = str(error)
        self._settle(trouble)

    def _settle(self, trouble: str) -> None:
        self.trouble = trouble
        self._node.answered(self._asked, healthy=not trouble)

    async def stop(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
