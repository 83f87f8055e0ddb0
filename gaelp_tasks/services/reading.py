"""The stream of an accepted invocation, told to a reader who may come late, and come back."""

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import worded
from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.line import open_line
from gaelp_tasks.models.acceptance import Acceptance, Standing
from gaelp_tasks.readers import FIRST, abefore_text, afollow
from gaelp_tasks.streams import End, Event, Piece, Start, claim_of

__all__ = ["Told", "read", "resume_from"]

ENTRY = re.compile(r"\d{1,19}-\d{1,19}")
LOOK_S = 2  #: silent seconds between two looks into the database
START_FACTS = ("agent", "model", "tier", "attempt")
OUTCOMES = {Standing.DONE: "done", Standing.CUT: "cut", Standing.FAILED: "failed"}


class Told(NamedTuple):
    """One thing that a reader is told."""

    event: str  #: start, token, restart, end; '' for a second in which nothing came
    data: Mapping[str, Any]
    id: str = ""  #: where to go on after it; '' where that changes nothing


SILENCE = Told("", {})


def resume_from(last: str | None) -> str | None:
    """Where a reader goes on; None: from the beginning. Raises InvalidInvocation."""
    if not last:
        return None
    if not ENTRY.fullmatch(last):
        raise InvalidInvocation("Last-Event-ID: send the id of an event of this stream.")
    return last


async def read(
    app: GaelpApp, row: Callable[[], Awaitable[Acceptance]], after: str | None
) -> AsyncGenerator[Told, None]:
    """All that is told of an invocation from token 0, or behind `after`, until its end.

    Where Redis keeps no stream of it any more it is what the database has. Raises BrokerUnavailable.
    """
    now = await row()
    teller = _Teller(after)
    with worded(app.settings):
        async with aclosing(open_line(app.settings)) as line:
            key = app.keys.stream(now.id)
            begin = after or await abefore_text(line, key)
            if now.is_over and begin == FIRST:
                for told in _whole(now):
                    yield told
                return
            async with aclosing(afollow(line, key, begin, over=_Looks(row, first=now.is_over))) as events:
                async for event in events:
                    if event is None:
                        yield SILENCE
                        continue
                    for told in teller.take(event):
                        yield told
                    if isinstance(event, End):
                        return
            yield _end(await row())


class _Looks:
    """Whether an invocation is over, asked at each silent second."""

    def __init__(self, row: Callable[[], Awaitable[Acceptance]], *, first: bool) -> None:
        self._row = row
        self._silent = 0 if not first else LOOK_S

    async def __call__(self) -> bool:
        self._silent += 1
        if self._silent < LOOK_S:
            return False
        self._silent = 0
        return (await self._row()).is_over


class _Teller:
    """Knows what its reader has seen."""

    def __init__(self, after: str | None) -> None:
        self._claim = claim_of(after) if after else 0
        self._read = after is not None

    def take(self, event: Event) -> list[Told]:
        """What the reader is told of it."""
        match event:
            case Start(claim=claim) if claim > self._claim:
                self._claim = claim
                name = "restart" if self._read and not event.resumes else "start"
                facts = {name: event.facts.get(name) for name in START_FACTS}
                return [Told(name, {"claim": claim, "resumes": event.resumes, **facts}, event.id)]
            case Piece(text=text, thinking=thinking) if text or thinking:
                self._read = True
                data = {"text": text} | ({"thinking": thinking} if thinking else {})
                return [Told("token", data, event.id)]
            case End(facts=facts):
                return [Told("end", {name: facts[name] for name in facts if name != "result"}, event.id)]
        return []


def _whole(row: Acceptance) -> list[Told]:
    """What the database has of one that is over."""
    text = str(json.loads(row.result).get("text") or "") if row.result else ""
    return [*([Told("token", {"text": text})] if text else []), _end(row)]


def _end(row: Acceptance) -> Told:
    data: dict[str, Any] = {"outcome": OUTCOMES[row.standing], "stop_reason": row.stop_reason or None}
    if row.error:
        data["error"], _, data["message"] = row.error.partition(": ")
    if row.result:
        data["usage"] = json.loads(row.result).get("usage")
    return Told("end", data)
