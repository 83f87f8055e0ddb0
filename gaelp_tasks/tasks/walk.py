"""The walk of one invocation: claim, open the stream, recall, load, work, settle: the unit of work."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from celery.exceptions import TimeLimitExceeded

from gaelp_tasks.cancellation import Cancellation, Cancelled, Reason
from gaelp_tasks.connections import Trouble, unavailable
from gaelp_tasks.errors import StreamStalled
from gaelp_tasks.models.invocation import (
    Embedding,
    EmbeddingResult,
    Invocation,
    InvocationResult,
    StopReason,
)
from gaelp_tasks.models.usage import Timings
from gaelp_tasks.retries import Cut, Done, Failed, Outcome, Snooze, decide
from gaelp_tasks.streams import Piece, StreamFenced, TokenStream, parse
from gaelp_tasks.tasks.resources import Resources
from gaelp_tasks.tasks.resuming import CannotResume, Earlier, Way, look_back, take_up
from gaelp_tasks.tasks.settlement import facts_of, told_before

__all__ = ["AWAY_S", "Run", "Work", "walk"]

CLAIMS_TTL_S = 86_400  #: of an eager run's claim number
AWAY_S = 0.03  #: what makes way stays out of the way of whoever starts in its place: nobody waits for it
HAND_OVER_S = 2.0  #: for the text of a run that will be repeated to reach its stream


STOP_REASONS: dict[Reason, StopReason] = {
    Reason.USER: "cancelled",
    Reason.DEADLINE: "deadline",
    Reason.STALL: "stall",
    Reason.BUDGET: "budget",
    Reason.EXPIRED: "expired",
}


@dataclass(slots=True)
class Run:
    """One run of one invocation: who asked, when, which attempt, and the clock of its phases."""

    id: str
    asked: Invocation | Embedding
    attempt: int  #: 1 for the first
    published_at: float | None  #: Unix seconds; None from a sender that does not tell
    cancellation: Cancellation
    claim: int | None = None  #: which claim of the invocation this is; None where none was made (eager)
    stream: TokenStream | None = None  #: None until it is claimed
    started: float = 0.0  #: `tick` when it was claimed
    queued_s: float | None = None
    load_s: float | None = None
    first_token_s: float | None = None
    way: Way | None = None  #: how it answers; None where a later claim could not go on from its text
    earlier: Earlier | None = None  #: what it goes on from; None: it begins at the beginning
    tokens: int = 0  #: of the text in its stream, those of earlier claims included
    over: bool = False  #: the next claim has to start over

    def timings(self, at: Resources) -> Timings:
        """The phases so far."""
        return Timings(
            queued_s=self.queued_s,
            load_s=self.load_s,
            first_token_s=self.first_token_s,
            total_s=max(0.0, at.tick() - self.started),
        )


class Work(Protocol):
    """What is done between loading the model and settling."""

    model: str  #: '' until it is settled which

    @property
    def begun(self) -> bool:
        """Something of the answer exists."""

    def facts(self) -> dict[str, Any]:
        """What the stream's start tells about it; never a prompt."""

    async def resolve(self) -> str:
        """The model that this node will use. Raises ModelMissing."""

    async def recall(self, stream: TokenStream) -> bool:
        """Take the answer from the cache; False where the model has to make it, or a part of it."""

    async def load(self) -> float:
        """Have the model in memory; the seconds that took."""

    async def do(self, stream: TokenStream) -> StopReason:
        """Do it; the answer so far is kept in the object, whatever happens."""

    def result(self, stop_reason: StopReason) -> InvocationResult | EmbeddingResult:
        """The answer, whole or partial."""

    async def keep(self, result: Any) -> None:
        """Put what the model made into the cache, where that is wanted; never fails."""


async def walk(run: Run, work: Work, at: Resources) -> Outcome:
    """One run, from claim to settlement; every way out is an outcome.

    Raises StreamFenced when a later run of the same invocation has taken over: this one must leave no trace.
    """
    try:
        stream = await claim(run, work, at)
        outcome = await told_before(stream, at, resumes=run.earlier is not None)
        if outcome is None:
            await go_on(run, stream, at)
            await admit(run, at)
            async with stoppable(run):
                outcome = Done(work.result(await answer(run, work, stream, at)))
    except StreamFenced:
        raise
    except Cancelled as cancelled:
        outcome = cut_short(cancelled.reason, work)
    except Exception as error:  # noqa: BLE001  whatever an agent raises becomes an outcome
        outcome = judge(error, run, work, at)
    await settle(outcome, run, at)
    learn(outcome, run, work, at)
    if isinstance(outcome, Done) and outcome.result.stop_reason == "stop":
        await work.keep(outcome.result)
    return outcome


async def claim(run: Run, work: Work, at: Resources) -> TokenStream:
    """Open the stream with the number of this claim."""
    if run.claim is None:  # eager: no worker has claimed it
        run.claim = await at.redis.incr(at.keys.claims(run.id))
        await at.redis.expire(at.keys.claims(run.id), CLAIMS_TTL_S)
    run.started = at.tick()
    if run.published_at is not None:
        run.queued_s = max(0.0, at.now() - run.published_at)
    stream = at.streams.open(run.id, run.claim)
    run.way, run.earlier = await look_back(stream, run.asked, at)
    run.stream = stream
    facts = work.facts() | {"worker": at.worker, "node": at.node, "attempt": run.attempt, "at": at.now()}
    if run.way is not None:
        facts["way"] = run.way._asdict()
    if run.earlier is not None:
        facts |= {"resumes": True, "from": run.earlier.first}
    stream.start(facts)
    return stream


async def go_on(run: Run, stream: TokenStream, at: Resources) -> None:
    """Take up the text that this run's start has promised to go on from. Raises CannotResume."""
    if run.earlier is not None:
        run.earlier = await take_up(stream, run.earlier, at)
        run.tokens = run.earlier.tokens


async def admit(run: Run, at: Resources) -> None:
    """Notice what came while it was queued: a cancel, its time, or somebody else who has taken it over.

    The last can be where this process was cut off before the run began: nobody could stop it then.
    """
    cancel, claims = await at.redis.mget(at.keys.cancel(run.id), at.keys.claims(run.id))
    raise_overtaken(run, claims)
    if cancel is not None:
        raise Cancelled(Reason.USER)
    ttl_s = getattr(run.asked, "queue_ttl_s", None)
    late = ttl_s is not None and run.queued_s is not None and run.queued_s > ttl_s and run.attempt == 1
    if late and not await spoke_before(run, at):  # else it had begun in time, and had to make way
        raise Cancelled(Reason.EXPIRED)


async def spoke_before(run: Run, at: Resources) -> bool:
    """Whether an earlier claim has written any text."""
    before: Any = await at.redis.xrange(at.keys.stream(run.id), max=f"({run.claim}-0")
    return any(isinstance(parse(*entry), Piece) for entry in before)


@asynccontextmanager
async def stoppable(run: Run) -> AsyncIterator[None]:
    """What may be stopped from outside, the caller's deadline included."""
    loop = asyncio.get_running_loop()
    alarm = None
    deadline_s = getattr(run.asked, "deadline_s", None)
    if deadline_s is not None:
        left_s = deadline_s - (run.queued_s or 0.0)
        if left_s <= 0:
            raise Cancelled(Reason.DEADLINE)
        alarm = loop.call_later(left_s, run.cancellation.stop, Reason.DEADLINE)
    try:
        async with run.cancellation:
            yield
    finally:
        if alarm is not None:
            alarm.cancel()


async def answer(run: Run, work: Work, stream: TokenStream, at: Resources) -> StopReason:
    """Settle on a model and recall what it said; else have it in memory before the prompt's clock starts."""
    work.model = await work.resolve()
    if await work.recall(stream):
        return "stop"
    with at.demand.of(run.id, work.model, run.asked.tier) as asked:
        run.load_s = await work.load()
        if not at.lively():  # this process stood still: the answer may have been told elsewhere
            raise Cancelled(Reason.LEASE)
        at.demand.begins(asked)
        return await work.do(stream)


def cut_short(reason: Reason, work: Work) -> Outcome:
    """The outcome of a run that was stopped from outside."""
    match reason:
        case Reason.EVICTION | Reason.PREEMPTION | Reason.SHUTDOWN | Reason.LEASE:
            return Snooze(0.0, f"stopped: {reason}")
        case Reason.TIME_LIMIT:
            return Failed(TimeLimitExceeded("time_limit"))
        case _:
            return Cut(work.result(STOP_REASONS[reason]))


def judge(error: Exception, run: Run, work: Work, at: Resources) -> Outcome:
    """The outcome of a run that met an error; a stall after the first token keeps the text."""
    if isinstance(error, StreamStalled) and (work.begun or run.tokens):
        return Cut(work.result("stall"))
    if isinstance(error, CannotResume):
        run.over = True
        return Snooze(0.0, str(error))
    if isinstance(error, Trouble):
        return Snooze(at.policy.snooze_s, f"Redis: {error}")
    return decide(error, run.attempt, at.policy, at.rng)


def learn(outcome: Outcome, run: Run, work: Work, at: Resources) -> None:
    """Remember how long it had its slot, unless it will be repeated or the cache knew the answer."""
    if not isinstance(run.asked, Invocation) or not isinstance(outcome, Done | Cut) or run.load_s is None:
        return
    tally = at.tallies.get(run.id)
    if tally is not None:
        tally.lasted(work.model, at.tick() - run.started - run.load_s)


async def settle(outcome: Outcome, run: Run, at: Resources) -> None:
    """Close the stream of a run that will not be repeated; one that will be keeps its stream open.

    Raises StreamFenced when a later claim has taken over.
    """
    if run.stream is None:
        return
    if isinstance(outcome, Done | Cut | Failed):
        await run.stream.end(facts_of(outcome) | {"at": at.now()})
        return
    if run.cancellation.reason is Reason.PREEMPTION:
        await asyncio.sleep(AWAY_S)
    if run.tokens or run.over:
        facts = {"reason": run.cancellation.reason or "retry", "tokens": run.tokens, "at": at.now()}
        run.stream.pause(facts | ({"over": True} if run.over else {}))
    with suppress(TimeoutError, *unavailable):  # without Redis nobody waits for the text either
        async with asyncio.timeout(HAND_OVER_S):
            await run.stream.arrived()
            raise_overtaken(run, await at.redis.get(at.keys.claims(run.id)))


def raise_overtaken(run: Run, claims: Any) -> None:
    """Raises StreamFenced when Redis has counted more claims than this one."""
    if run.claim is not None and int(claims or 0) > run.claim:
        raise StreamFenced(f"Invocation {run.id} was started again elsewhere.")
