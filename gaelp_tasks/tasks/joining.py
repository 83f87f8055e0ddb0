"""Joining: embeddings that are asked for at the same time go to the model in one call, one call at a time.

What arrives while a call is under way goes into the next one, the higher tier first. The next call starts at
once, unless others are about to ask: those that have taken their seat already, and those that wait in the
queues for this worker to fetch them. It waits for them until its seats are full, for at most `GATHER_S`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from gaelp_tasks.clients.base import BaseOllamaClient, Embeddings
from gaelp_tasks.errors import NodeFailed, NodeUnreachable, RequestRefused
from gaelp_tasks.models.usage import Usage

__all__ = ["Joiner", "Seats", "patience_s", "shares"]

MAX_TEXTS = 512  #: of one call
MAX_BYTES = 1024**2  #: of one call's texts; a longer text goes alone
GATHER_S = 2.0  #: a call waits no longer for others; only a crowd or a crowded machine takes that long
BACKLOG_GAP_S = 0.25  #: of a backlog from which nothing came for so long, nothing is expected
GAP_S = 0.0005  #: for each caller of the call before: how long a stream of callers may seem to pause
LONGEST_GAP_S = 0.025
LOOK_S = 0.01  #: how often a waiting call looks who is still on the way
MAX_LANES = 32  #: models that are remembered while nothing is asked of them
RECENT_S = 1.0  #: callers and models seen within this are taken to be there still


class Seats:
    """The embeddings that this process holds, by how far they are; any thread may call and read."""

    def __init__(self, seats: int, clock: Callable[[], float]) -> None:
        self.taken: set[str] = set()  #: ids
        #: names of the queues that the worker takes from, none while no slot is free for an invocation
        self.open_queues: Callable[[], Collection[str]] = tuple
        self._seats = seats
        self._coming: dict[str, float] = {}  # since when
        self._leaving: set[str] = set()
        self._clock = clock

    def enter(self, invocation_id: str) -> None:
        """An embedding has taken a seat."""
        self.taken.add(invocation_id)
        self._coming[invocation_id] = self._clock()

    def asks(self, invocation_id: str) -> None:
        """It asks for its vectors."""
        self._coming.pop(invocation_id, None)

    def has(self, invocation_id: str) -> None:
        """It has its vectors and will leave soon."""
        self._coming.pop(invocation_id, None)
        if invocation_id in self.taken:
            self._leaving.add(invocation_id)

    def leave(self, invocation_id: str) -> None:
        """Its seat is free."""
        self._coming.pop(invocation_id, None)
        self.taken.discard(invocation_id)
        self._leaving.discard(invocation_id)

    def coming(self) -> int:
        """How many have just taken a seat and will ask soon; who takes longer is not counted on."""
        since = self._clock() - GATHER_S
        return sum(entered_at > since for entered_at in tuple(self._coming.values()))

    def fetches_from(self) -> Collection[str]:
        """The queues from which this process takes more, now or in a moment."""
        return self.open_queues() if len(self.taken) - len(self._leaving) < self._seats else ()


def patience_s(
    *, full: bool, coming: int, backlog: bool, crowd: int, silent_s: float, waited_s: float
) -> float:
    """How long the next call may still wait for more texts; 0 starts it. Pure.

    `coming`: others on their way to ask. `backlog`: more wait to be fetched. `crowd`: callers of the call
    before, 0 when that was long ago; after a crowd more will come, and a short gap between them is no reason
    to start. `silent_s`: since the last arrival or the end of the call before; `waited_s`: since there was
    something to call for.
    """
    left_s = GATHER_S - waited_s
    if full or left_s <= 0:
        return 0.0
    if coming or (backlog and silent_s < BACKLOG_GAP_S):
        return min(LOOK_S, left_s)
    gap_s = min(crowd * GAP_S, LONGEST_GAP_S) if crowd > 1 else 0.0
    return max(0.0, min(gap_s - silent_s, left_s))


def shares(tokens: int, sizes: Sequence[int]) -> list[int]:
    """A call's tokens shared out by the bytes of each caller's texts; the sum stays exact."""
    whole, so_far, given, found = sum(sizes), 0, 0, []
    for size in sizes:
        so_far += size
        upto = tokens * so_far // whole if whole else 0
        found.append(upto - given)
        given = upto
    return found


@dataclass(eq=False, slots=True)
class _Ask:
    """One caller and its texts; a large one is spread over several calls."""

    texts: tuple[str, ...]
    order: tuple[int, int]  #: rank of the tier, number of arrival
    answer: asyncio.Future[Embeddings]
    taken: int = 0  #: texts that went into a call
    vectors: list[tuple[float, ...]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)


class _Part(NamedTuple):
    """What one call carries for one caller."""

    ask: _Ask
    texts: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)


async def nobody(model: str, rank: int) -> bool:  # noqa: ARG001  whoever asks
    """No queue holds more."""
    return False


class Joiner:
    """Embeds for many callers of one event loop.

    `client` gives the client of each call. `coming` tells how many others will ask in a moment, `backlog`
    whether texts for a model, of at least this rank, wait to be fetched.
    """

    def __init__(
        self,
        client: Callable[[], BaseOllamaClient],
        *,
        seats: int,
        coming: Callable[[], int] = lambda: 0,
        backlog: Callable[[str, int], Awaitable[bool]] = nobody,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._client = client
        self._seats = seats
        self._coming = coming
        self._backlog = backlog
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}

    async def embed(self, texts: Sequence[str], *, model: str, rank: int = 0) -> Embeddings:
        """The vectors of these texts; a lower `rank` goes first. Raises what the model's call raises.

        Cancelling it takes its texts out of what waits; the call is cancelled when nobody waits for it.
        """
        if not texts:
            return Embeddings(vectors=(), model=model)
        return await self._lane(model).embed(tuple(texts), rank)

    async def load(self, model: str) -> float:
        """Make sure the model is in memory, one question for all who ask now; the seconds that took."""
        return await self._lane(model).load()

    def _lane(self, model: str) -> "_Lane":
        if model not in self._lanes:
            if len(self._lanes) >= MAX_LANES:  # callers may name any model
                self._lanes = {name: lane for name, lane in self._lanes.items() if lane.busy}
            clock = self._clock or asyncio.get_running_loop().time
            backlog = partial(self._backlog, model)
            self._lanes[model] = _Lane(model, self._client, self._seats, self._coming, backlog, clock)
        return self._lanes[model]


class _Lane:
    """The calls of one model, one after another."""

    def __init__(
        self,
        model: str,
        client: Callable[[], BaseOllamaClient],
        seats: int,
        coming: Callable[[], int],
        backlog: Callable[[int], Awaitable[bool]],
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._client = client
        self._seats = seats
        self._coming = coming
        self._backlog = backlog
        self._clock = clock
        self._waiting: list[_Ask] = []
        self._arrivals = 0
        self._arrived_at = self._ended_at = self._answered_at = -RECENT_S
        self._crowd = 0
        self._moved = asyncio.Event()  #: somebody came or went
        self._server: asyncio.Task[None] | None = None
        self._call: asyncio.Task[Embeddings] | None = None
        self._parts: list[_Part] = []  #: what the call carries
        self._loading: asyncio.Task[float] | None = None

    @property
    def busy(self) -> bool:
        return self._server is not None or self._loading is not None

    async def embed(self, texts: tuple[str, ...], rank: int) -> Embeddings:
        self._arrivals += 1
        self._arrived_at = self._clock()
        ask = _Ask(texts, (rank, self._arrivals), asyncio.get_running_loop().create_future())
        self._waiting.append(ask)
        self._moved.set()
        if self._server is None:
            self._server = asyncio.create_task(self._serve())
        try:
            return await ask.answer
        finally:
            if ask.answer.cancelled():
                self._forsake(ask)

    async def load(self) -> float:
        if self._call is not None or self._clock() - self._answered_at < RECENT_S:
            return 0.0  # it answers, or just did
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(self._loaded)
        return await asyncio.shield(self._loading)  # whoever leaves must not abort it for the others

    async def _load(self) -> float:
        return await self._client().load(self._model)

    def _loaded(self, loading: asyncio.Task[float]) -> None:
        self._loading = None
        if not loading.cancelled():
            loading.exception()  # all who waited may have left

    def _forsake(self, ask: _Ask) -> None:
        """Nobody waits for this any more."""
        if ask in self._waiting:
            self._waiting.remove(ask)
        if self._call is not None and all(part.ask.answer.done() for part in self._parts):
            self._call.cancel()
        self._moved.set()

    async def _serve(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                await self._perform(self._take())
        except Exception as error:  # noqa: BLE001  nobody may wait for a call that never comes
            for ask in tuple(self._waiting):
                self._fail(ask, error)
        finally:
            self._server = None

    async def _gather(self) -> None:
        """Wait for those who are about to ask, as long as that is worth it."""
        await asyncio.sleep(0)  # those who were just answered get up first, and are seen to leave
        since = self._clock()
        if since - self._ended_at > RECENT_S:
            self._crowd = 0
        backlog = False
        while self._waiting:
            now = self._clock()
            wait_s = patience_s(
                full=self._full(),
                coming=self._coming(),
                backlog=backlog,
                crowd=self._crowd,
                silent_s=now - max(self._arrived_at, self._ended_at),
                waited_s=now - since,
            )
            if wait_s <= 0 and not backlog and not self._full():
                backlog = await self._backlog(min(ask.order[0] for ask in self._waiting))
                if backlog:
                    continue
            if wait_s <= 0:
                return
            self._moved.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._moved.wait()
            except TimeoutError:
                backlog = False  # as far as known

    def _full(self) -> bool:
        """Nobody else can ask, or the call could not carry more."""
        texts = sum(len(ask.texts) - ask.taken for ask in self._waiting)
        return len(self._waiting) >= self._seats or texts >= MAX_TEXTS

    def _take(self) -> list[_Part]:
        """The texts of the next call, the most urgent first; what does not fit waits on."""
        self._waiting.sort(key=lambda ask: ask.order)
        parts: list[_Part] = []
        texts_left, bytes_left = MAX_TEXTS, MAX_BYTES
        for ask in tuple(self._waiting):
            until = ask.taken
            while until < len(ask.texts) and texts_left:
                size_bytes = len(ask.texts[until].encode())
                if size_bytes > bytes_left and texts_left < MAX_TEXTS:
                    texts_left = 0
                    break
                until, texts_left, bytes_left = until + 1, texts_left - 1, bytes_left - size_bytes
            if until > ask.taken:
                parts.append(_Part(ask, ask.texts[ask.taken : until]))
                ask.taken = until
            if ask.taken == len(ask.texts):
                self._waiting.remove(ask)
        return parts

    async def _perform(self, parts: list[_Part]) -> None:
        """One call; refused, it is tried in halves, so that one bad text harms none but its own caller.

        A node also answers 500 because of a single text, as where a vector comes out as NaN.
        """
        parts = [part for part in parts if not part.ask.answer.done()]
        if not parts:
            return
        self._parts = parts
        texts = [text for part in parts for text in part.texts]
        self._call = asyncio.create_task(self._embed(texts))
        try:
            await asyncio.wait([self._call])
        finally:
            call, self._call = self._call, None
            self._ended_at = self._clock()
            self._crowd = len(parts) + len(self._waiting)
        error = self._trouble(call, len(texts))
        if error is None:
            self._answered_at = self._ended_at
            self._deliver(parts, call.result())
        elif isinstance(error, RequestRefused | NodeFailed) and len(parts) > 1:
            middle = len(parts) // 2
            await self._perform(parts[:middle])
            await self._perform(parts[middle:])
        else:
            for part in parts:
                self._fail(part.ask, error)

    async def _embed(self, texts: list[str]) -> Embeddings:
        return await self._client().embed(texts, model=self._model)

    def _trouble(self, call: asyncio.Task[Embeddings], expected: int) -> BaseException | None:
        """What the call failed with; cancelled, it is of interest to nobody, unless the client did that."""
        if call.cancelled():
            return NodeUnreachable(f"The call of '{self._model}' was broken off; try again.")
        error = call.exception()
        if error is None and (made := len(call.result().vectors)) != expected:
            return NodeFailed(f"'{self._model}' made {made} vectors for {expected} texts.")
        return error

    def _deliver(self, parts: list[_Part], joined: Embeddings) -> None:
        start = 0
        tokens = shares(joined.usage.prompt_tokens, [part.size_bytes for part in parts])
        for (ask, texts), prompt_tokens in zip(parts, tokens, strict=True):
            ask.vectors += joined.vectors[start : start + len(texts)]
            ask.usage += Usage(prompt_tokens=prompt_tokens)
            start += len(texts)
            if len(ask.vectors) == len(ask.texts) and not ask.answer.done():
                ask.answer.set_result(
                    joined.model_copy(update={"vectors": tuple(ask.vectors), "usage": ask.usage})
                )

    def _fail(self, ask: _Ask, error: BaseException) -> None:
        if ask in self._waiting:
            self._waiting.remove(ask)  # its other texts are of no use any more
        if not ask.answer.done():
            ask.answer.set_exception(error)
