"""The reading end of token streams: from token 0, late, twice, over a run that goes on or started over."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from gaelp_tasks.connections import Refused, SyncRedis
from gaelp_tasks.errors import StreamRestarted
from gaelp_tasks.line import Asks
from gaelp_tasks.streams import LAST_NUMBER, End, Event, Fields, Piece, Start, claim_of, parse

__all__ = ["FIRST", "Reading", "abefore_text", "afollow", "before_text", "follow"]

FIRST = "0-0"  #: reading after this id reads everything
BLOCK_S = 1.0  #: how long one read waits before it gives the caller a turn
BATCH = 512  #: entries per read


def before_text(redis: SyncRedis, key: str) -> str:
    """The id to read after to see the newest text from token 0, in whichever run it began."""
    newest: Any = redis.xrevrange(key, count=1)
    if not newest:
        return FIRST
    number_0 = f"{claim_of(newest[0][0])}-0"
    return _before(newest, redis.xrange(key, number_0, number_0))


async def abefore_text(redis: Asks, key: str) -> str:
    """The same, asked on a line."""
    newest = await _asked(redis, "XREVRANGE", key, "+", "-", "COUNT", 1)
    if not newest:
        return FIRST
    number_0 = f"{claim_of(newest[0][0])}-0"
    return _before(newest, await _asked(redis, "XRANGE", key, number_0, number_0))


async def _asked(redis: Asks, *command: Any) -> Any:
    [reply] = await redis.ask(command)
    if isinstance(reply, Refused):
        raise reply
    return reply


def _before(newest: Any, its_start: Any) -> str:
    """What the newest entry and the first one of its run tell, as XRANGE gives them."""
    claim = claim_of(newest[0][0])
    start = parse(its_start[0][0], _fields(its_start[0][1])) if its_start else None
    return f"{(start.first if isinstance(start, Start) else claim) - 1}-{LAST_NUMBER}"


def follow(
    redis: SyncRedis, key: str, after: str = FIRST, *, over: Callable[[], bool] = lambda: False
) -> Iterator[Event | None]:
    """The events after an id, as they come; None each second in which nothing came.

    After each None it asks whether it is `over`; it then ends behind all that came until that was said.
    """
    ends = False
    while True:
        reply: Any = redis.xread({key: after}, count=BATCH, block=None if ends else int(BLOCK_S * 1000))
        if not reply:
            if ends:
                return
            yield None
            # between the silence and this word the rest may have come
            ends = over()
            continue
        [(_, entries)] = reply
        for entry_id, fields in entries:
            after = entry_id
            yield parse(entry_id, fields)


async def never() -> bool:
    """It is not over."""
    return False


async def afollow(
    redis: Asks, key: str, after: str = FIRST, *, over: Callable[[], Awaitable[bool]] = never
) -> AsyncGenerator[Event | None, None]:
    """The same, asked on a line."""
    ends = False
    while True:
        wait = () if ends else ("BLOCK", int(BLOCK_S * 1000))
        [reply] = await redis.ask(("XREAD", "COUNT", BATCH, *wait, "STREAMS", key, after))
        if isinstance(reply, Refused):
            raise reply
        if not reply:
            if ends:
                return
            yield None
            ends = await over()
            continue
        [(_, entries)] = reply
        for entry_id, flat in entries:
            after = entry_id
            yield parse(entry_id, _fields(flat))


def _fields(pairs: Any) -> Fields:
    """An entry's fields: redis-py makes a mapping of them, a line gives them as they came."""
    return pairs if isinstance(pairs, Mapping) else dict(zip(pairs[::2], pairs[1::2], strict=True))


class Reading:
    """What a reader of text has seen: gives out pieces, notices a run that started over."""

    def __init__(self) -> None:
        self.claim = 0
        self.read = False  #: some text was given out
        self.end: End | None = None

    def take(self, event: Event | None) -> str:
        """The text that this event adds, '' for none. Raises StreamRestarted."""
        match event:
            case Start(claim=claim) if claim > self.claim:
                if self.read and not event.resumes:
                    raise StreamRestarted(
                        "The run was started over after a part of its text had been read; read it again from "
                        "the start, or wait for the result."
                    )
                self.claim = claim
            case Piece(text=text) if text:
                self.read = True
                return text
            case End():
                self.end = event
        return ""
