"""Token streams: one Redis Stream per invocation, written once, read from any place any number of times.

An entry's id is `<claim>-<number>`: the claim that wrote it and its place in that run. Redis refuses an id
that is not above the last one, so a write repeated after a lost reply adds nothing, and a run that was
started over fences off the one before it. Entries: number 0 opens a run (`start`), then text (`t`) or
thinking (`h`) pieces; a run that is put off after some text says so (`pause`), and `end` closes the
invocation. A run whose start says `resumes` goes on from the text before it: to a reader it is one text.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gaelp_tasks.connections import Refused, lost
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.keys import Keys
from gaelp_tasks.line import Asks, Command
from gaelp_tasks.models.frozen import well_formed

__all__ = [
    "LAST_NUMBER",
    "End",
    "Event",
    "Pause",
    "Piece",
    "Start",
    "StreamFenced",
    "StreamWriter",
    "TokenStream",
    "claim_of",
    "parse",
]

logger = logging.getLogger(__name__)

LAST_NUMBER = 2**64 - 1  #: above every entry of a run
BACKLOG_CHARS = 256 * 1024  #: a writer this far ahead of Redis waits
AGAIN_S = 0.1
OLD_ID = "equal or smaller"  #: in what Redis says of an id that is not above the last one


class StreamFenced(GaelpError):
    """A later claim has taken this invocation over; this run must stop writing."""


@dataclass(frozen=True, slots=True)
class Start:
    """A run began; `facts` says which worker, agent, model, attempt."""

    id: str
    claim: int
    facts: dict[str, Any]

    @property
    def resumes(self) -> bool:
        """It goes on from the text that is in the stream."""
        return bool(self.facts.get("resumes"))

    @property
    def first(self) -> int:
        """The claim in which its text begins: its own, unless it resumes."""
        return int(self.facts.get("from", self.claim)) if self.resumes else self.claim


@dataclass(frozen=True, slots=True)
class Piece:
    """Text as it came, one or more tokens; `thinking` is beside the answer, not in it."""

    id: str
    claim: int
    text: str
    thinking: str = ""
    tokens: int = 1  #: pieces of the model in it, one a token; 0: no model wrote it just now


@dataclass(frozen=True, slots=True)
class Pause:
    """The run was put off and will be repeated; `facts`: reason, tokens so far, `over` if from the start."""

    id: str
    claim: int
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """The invocation is over; `facts` holds outcome, stop_reason and the usage, or the error."""

    id: str
    claim: int
    facts: dict[str, Any]


Event = Start | Piece | Pause | End
Fields = Mapping[str, str]


def claim_of(entry_id: str) -> int:
    """The claim that wrote an entry."""
    return int(entry_id.partition("-")[0])


def parse(entry_id: str, fields: Fields) -> Event:
    """An entry of the stream as an event."""
    claim = claim_of(entry_id)
    if "pause" in fields:
        return Pause(entry_id, claim, json.loads(fields["pause"]))
    if "t" in fields or "h" in fields:
        return Piece(entry_id, claim, fields.get("t", ""), fields.get("h", ""), int(fields.get("n", 1)))
    if "start" in fields:
        return Start(entry_id, claim, json.loads(fields["start"]))
    return End(entry_id, claim, json.loads(fields["end"]))


class Entry(NamedTuple):
    """An entry on its way."""

    id: str
    fields: tuple[str, ...]
    last: bool = False  #: the stream's time to live begins with it


class TokenStream:
    """The writing end of one run; `write` never waits, `room` does when Redis falls behind."""

    def __init__(self, writer: "StreamWriter", invocation_id: str, claim: int) -> None:
        self.id = invocation_id
        self.claim = claim
        self.key = writer.keys.stream(invocation_id)
        self.next = 0  #: number of the next entry
        self.text: list[str] = []  #: pieces that wait for the next round trip
        self.tokens = 0  #: in them
        self.waiting = 0  #: characters that Redis has not taken yet
        self.fenced = False
        self._writer = writer

    def start(self, facts: Mapping[str, Any]) -> None:
        """Open the run."""
        self._writer.add(self, "start", json.dumps(facts))

    def write(self, text: str, *, tokens: int = 1) -> None:
        """Add a piece of the answer; pieces that gather while Redis answers travel together.

        `tokens` 0 is text that no model wrote just now: nothing can go on from it.
        """
        self.text.append(well_formed(text))
        self.tokens += tokens
        self.waiting += len(text)
        self._writer.wake(self)

    def think(self, thinking: str) -> None:
        """Add a piece of the model's thinking."""
        self.waiting += len(thinking)
        self._writer.add(self, "h", well_formed(thinking))

    def pause(self, facts: Mapping[str, Any]) -> None:
        """Say that the run is put off; to a reader of an earlier release it is a piece without text."""
        self._writer.add(self, "t", "", "pause", json.dumps(facts))

    async def room(self) -> None:
        """Wait while too much is on its way. Raises StreamFenced when a later claim has taken over."""
        while self.waiting > BACKLOG_CHARS and not self.fenced:
            await self._writer.flushed()
        self._raise_fenced()

    def _raise_fenced(self) -> None:
        if self.fenced:
            raise StreamFenced(f"Invocation {self.id} was started again elsewhere.")

    async def end(self, facts: Mapping[str, Any]) -> None:
        """Close the invocation, start the stream's time to live, and wait until Redis has it.

        Raises StreamFenced when a later claim has taken over.
        """
        self._writer.add(self, "end", json.dumps(facts), last=True)
        await self.arrived()

    async def arrived(self) -> None:
        """Wait until Redis has all of it. Raises StreamFenced when a later claim has taken over."""
        await self.sent()
        self._raise_fenced()

    async def sent(self) -> None:
        """Wait until Redis has all that was written, or a later claim has taken over."""
        while self._writer.pending(self):
            await self._writer.flushed()


Batch = Mapping[TokenStream, tuple[Entry, ...]]


def _additions(batch: Batch) -> list[Command]:
    return [
        ("XADD", stream.key, entry.id, *entry.fields)
        for stream, entries in batch.items()
        for entry in entries
    ]


class StreamWriter:
    """Writes all streams of this process through one connection, one round trip at a time.

    What gathers during a round trip goes out with the next one, the text of one stream as one entry: a
    single token leaves at once, a flood costs a fraction of a command per token.
    """

    def __init__(self, redis: Asks, keys: Keys, *, ttl_s: float) -> None:
        self.keys = keys
        self._redis = redis
        self._ttl_ms = int(ttl_s * 1000)
        self._ready: dict[TokenStream, list[Entry]] = {}
        self._round: asyncio.Future[None] | None = None
        self._flusher: asyncio.Task[None] | None = None

    def open(self, invocation_id: str, claim: int) -> TokenStream:
        """The writing end for this claim."""
        return TokenStream(self, invocation_id, claim)

    def add(self, stream: TokenStream, *fields: str, last: bool = False) -> None:
        """Queue an entry, names and values in turn, behind what the stream has written so far."""
        self._gather(stream)
        self._ready[stream].append(Entry(self._number(stream), fields, last))
        self._run()

    def wake(self, stream: TokenStream) -> None:
        """The stream has text to send."""
        self._ready.setdefault(stream, [])
        self._run()

    def pending(self, stream: TokenStream) -> bool:
        """Whether anything of the stream has not reached Redis yet."""
        return stream in self._ready and not stream.fenced

    async def flushed(self) -> None:
        """Wait for the end of the round trip under way."""
        if self._round is None:
            self._round = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._round)

    def _number(self, stream: TokenStream) -> str:
        number, stream.next = stream.next, stream.next + 1
        return f"{stream.claim}-{number}"

    def _gather(self, stream: TokenStream) -> None:
        entries = self._ready.setdefault(stream, [])
        if stream.text:
            count = () if stream.tokens == 1 else ("n", str(stream.tokens))
            entries.append(Entry(self._number(stream), ("t", "".join(stream.text), *count)))
            stream.text.clear()
            stream.tokens = 0

    def _run(self) -> None:
        if self._flusher is None:
            batch, asked = self._take()
            self._flusher = asyncio.get_running_loop().create_task(self._flush(batch, asked))

    def _take(self) -> tuple[Batch, Awaitable[list[Any]]]:
        """All that waits, already on its way where the line is open: a task's first step would come later."""
        for stream in self._ready:
            self._gather(stream)
        batch = {stream: tuple(entries) for stream, entries in self._ready.items()}
        return batch, self._redis.ask(*_additions(batch))

    async def _flush(self, batch: Batch, asked: Awaitable[list[Any]]) -> None:
        try:
            while True:
                await self._send(batch, asked)
                self._settle(batch)
                if not self._ready:
                    return
                batch, asked = self._take()
        finally:
            self._flusher = None

    async def _send(self, batch: Batch, asked: Awaitable[list[Any]]) -> None:
        """One round trip, and one more where a stream has ended."""
        owners = [(stream, entry) for stream, entries in batch.items() for entry in entries]
        replies = await self._execute(_additions(batch), asked)
        ended: list[Command] = []
        for (stream, entry), reply in zip(owners, replies, strict=True):
            if isinstance(reply, Refused) and not stream.fenced:
                stream.fenced = await self._overtaken(stream)
            if entry.last and not stream.fenced:
                ended.append(("PEXPIRE", stream.key, self._ttl_ms))
        if ended:
            await self._execute(ended)

    async def _overtaken(self, stream: TokenStream) -> bool:
        """Whether the refused id was a later claim's doing, and not our own repeated write."""
        [newest] = await self._execute([("XREVRANGE", stream.key, "+", "-", "COUNT", 1)])
        return bool(newest) and claim_of(newest[0][0]) > stream.claim

    async def _execute(
        self, commands: Sequence[Command], asked: Awaitable[list[Any]] | None = None
    ) -> list[Any]:
        """The replies to what was `asked` already, or is asked now; it is asked until Redis takes it.

        Refused ids are replies. After a broken connection, or from a full or loading server, the whole
        question is repeated: the ids make that harmless.
        """
        while True:
            try:
                replies = await (asked or self._redis.ask(*commands))
            except lost as error:
                trouble: Exception = error
            else:
                refusals = [reply for reply in replies if isinstance(reply, Exception)]
                not_now = [reply for reply in refusals if OLD_ID not in str(reply)]
                if not not_now:
                    return replies
                trouble = not_now[0]
            asked = None
            logger.warning("A token stream waits for Redis: %s", trouble)
            await asyncio.sleep(AGAIN_S)

    def _settle(self, batch: Batch) -> None:
        for stream, entries in batch.items():
            rest = self._ready[stream][len(entries) :]
            stream.waiting = sum(map(len, stream.text)) + sum(len(entry.fields[1]) for entry in rest)
            if rest or stream.text:
                self._ready[stream] = rest
            else:
                del self._ready[stream]
        if self._round is not None:
            self._round.set_result(None)
            self._round = None
