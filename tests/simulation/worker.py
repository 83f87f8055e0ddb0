"""A worker process as a small state machine around the real leases, keeper, walk and stream writer.

Each turn is one thing that a crash can fall before or behind: a claim is sent, its answer is read, a run
begins, the stream's next question is put, a token comes, what follows is published, the result is stored,
the message is acknowledged.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace
from typing import Any, Protocol

from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry

from gaelp_tasks import cancellation
from gaelp_tasks.cancellation import Reason, Runs
from gaelp_tasks.connections import Refused, lost
from gaelp_tasks.errors import NodeBusy, NodeUnreachable, RequestRefused
from gaelp_tasks.models.invocation import InvocationResult, Tier
from gaelp_tasks.models.usage import Usage
from gaelp_tasks.retries import Cut, Done, Outcome, Retry, RetryPolicy
from gaelp_tasks.streams import StreamFenced, StreamWriter
from gaelp_tasks.sweeping import connection_name
from gaelp_tasks.tasks import walk
from gaelp_tasks.tasks.demand import Demand
from gaelp_tasks.tasks.walk import Run
from gaelp_workers.keeper import Keeper
from simulation import ours
from simulation.judge import Judge
from simulation.server import AsyncClient, AsyncLine, LocalClock, Loop, Server

SLOTS = 2
POLICY = RetryPolicy(attempts=3, base_s=1.0, cap_s=8.0, snooze_s=2.0)


class World(Protocol):
    """What a process sees of the simulation."""

    server: Server
    loop: Loop
    judge: Judge
    calm: bool  #: models fail no more

    def note(self, what: str) -> None: ...

    def copy(self, task_id: str) -> str: ...

    def told(self, task_id: str) -> None: ...


class Model:
    """The work of one run: calls a model whose tokens come when the simulation says so."""

    def __init__(self, claimed: ours.Claimed, worker: "Worker") -> None:
        self.model = "m"
        self.text = ""
        self.gate: asyncio.Future[None] | None = None
        self._claimed = claimed
        self._worker = worker

    @property
    def begun(self) -> bool:
        return bool(self.text)

    def facts(self) -> dict[str, Any]:
        return {"agent": "chat"}

    async def resolve(self) -> str:
        return "m"

    async def recall(self, stream: Any) -> bool:
        return False

    async def load(self) -> float:
        return 0.0

    async def do(self, stream: Any) -> str:
        world, task_id = self._worker.world, self._claimed.headers["id"]
        world.judge.calls(task_id, self._claimed.tag)
        chance = Random(f"{task_id}|{self._claimed.tag}")
        for _ in range(chance.randint(1, 3)):
            self.gate = world.loop.create_future()
            await self.gate
            self.text += f"{self._claimed.tag} "
            stream.write(f"{self._claimed.tag} ")
            await stream.room()
        fate = 1.0 if world.calm else chance.random()
        if fate < 0.08:
            raise NodeUnreachable("The node is gone.")
        if fate < 0.16:
            raise NodeBusy("The node is busy.", retry_after_s=1.0)
        if fate < 0.20:
            raise RequestRefused("The node refuses this.")
        return "stop"

    def result(self, stop_reason: Any) -> InvocationResult:
        return InvocationResult(
            id=self._claimed.headers["id"], agent="chat", model="m", node="", tier="interactive", priority=5,
            text=self.text, stop_reason=stop_reason, attempts=1, usage=Usage(),
        )  # fmt: skip

    async def keep(self, result: Any) -> None:
        """There is no cache."""


@dataclass
class Job:
    """A message that this process holds, and how far it is."""

    claimed: ours.Claimed
    model: Model
    run: Run
    walking: "asyncio.Task[Outcome] | None" = None
    steps: "list[Callable[[], None]] | None" = None  #: what is left to do once the walk has ended
    busy: bool = False  #: in the middle of a synchronous command

    @property
    def name(self) -> str:
        return f"{self.claimed.headers['copy']} (claim {self.claimed.claim})"


class Worker:
    """One process. `turn` and `beat` raise ProcessDied where it dies."""

    def __init__(self, world: World, name: str, rng: Random) -> None:
        self.world = world
        self.name = name
        self.clock = LocalClock(world.server.clock, rng.uniform(0.9, 1.1))
        self.frozen_until = 0.0
        self.next_beat = 0.0
        self.stopping = False
        self._answer: list[Any] | None = None
        self._claiming = False
        self._looking: asyncio.Task[None] | None = None  # for what was cancelled
        self.jobs: dict[str, Job] = {}
        self._main = world.server.client(name, retries=1)
        self._keepers = world.server.client(name, name=connection_name(name))
        self._kombu = world.server.client(name)  #: claims, publishes, stores; repeats nothing by itself
        self.line = AsyncLine(world.server, name, world.loop)
        self.redis = AsyncClient(self.line)
        self.leases = ours.make_leases(self._main, name)
        self.keeper = Keeper(
            self.leases, self._keepers, every_s=ours.BEAT_S, on_lost=self._lose, clock=self.clock.tick
        )
        self.runs = Runs(world.loop)
        self.at: Any = SimpleNamespace(
            redis=self.redis,
            keys=ours.KEYS,
            streams=StreamWriter(self.line, ours.KEYS, ttl_s=3600.0),
            runs=self.runs,
            policy=POLICY,
            rng=Random(name),
            worker=name,
            lively=lambda: self.keeper.lively,
            node="",
            now=self.clock.wall,
            tick=self.clock.tick,
            demand=Demand(),
        )

    def close(self) -> None:
        """The process is gone; its connections are too."""
        self.line.dead = True
        self.line.asked.clear()
        for client in (self._main, self._keepers, self._kombu):
            client.connection_pool.disconnect()

    def _lose(self, task_id: str) -> None:
        self.world.note(f"{self.name} has lost {task_id}")
        self.runs.stop(task_id, Reason.LEASE)

    def beat(self) -> None:
        """The keeper's thread."""
        began_s, faults, cancels = (
            self.world.server.clock(),
            self.world.server.faults,
            self.world.judge.cancels,
        )
        self.keeper.beat()
        if (faults, cancels) == (self.world.server.faults, self.world.judge.cancels):
            self.world.judge.swept(began_s)

    # -- turns

    def turn(self, rng: Random) -> None:
        """One thing that could come next."""
        choices = self._choices()
        if choices:
            what, act = choices[rng.randrange(len(choices))]
            self.world.note(f"{self.name}: {what}")
            act()
            self.world.loop.settle()

    def _choices(self) -> list[tuple[str, Callable[[], None]]]:
        found: list[tuple[str, Callable[[], None]]] = []
        if self.line.asked:
            commands = self.line.asked[0][0]
            found += [(" ".join(str(word) for word in commands[0][:3]), self.line.deliver)] * 2
        if self._answer is not None:
            found.append(("reads the claim's answer", self._take))
        elif not self.stopping and not self._claiming and not self.leases.alone:
            found.append(("claims", self._claim))
        for job in tuple(self.jobs.values()):
            if not job.busy and (step := self._step(job)) is not None:
                found.append(step)
        if self.jobs and (self._looking is None or self._looking.done()):
            found.append(("looks for cancels", self._sweep_cancels))
        return found

    def _step(self, job: Job) -> tuple[str, Callable[[], None]] | None:
        if job.walking is None:
            return f"begins {job.name}", lambda: self._begin(job)
        if not job.walking.done():
            gate = job.model.gate
            if gate is None or gate.done():
                return None
            return f"a token for {job.name}", lambda: gate.set_result(None)
        if job.steps is None:
            return f"{job.name} has ended", lambda: self._ended(job)
        return f"{job.steps[0].__name__} of {job.name}", lambda: self._next(job)

    def _claim(self) -> None:
        self._claiming = True
        try:
            self._answer = ours.send_claim(self._kombu, self.leases, SLOTS)
        except (*lost, Refused):
            self.world.note(f"{self.name}: no answer to the claim")
        finally:
            self._claiming = False

    def _take(self) -> None:
        answer, self._answer = self._answer or [], None
        for claimed in ours.take(self.leases, answer):
            task_id = claimed.headers["id"]
            run = Run(
                id=task_id,
                asked=SimpleNamespace(tier=Tier.INTERACTIVE),
                attempt=claimed.headers["retries"] + 1,
                published_at=None,
                cancellation=self.runs.enter(task_id),
                claim=claimed.claim,
            )
            self.jobs[claimed.tag] = Job(claimed, Model(claimed, self), run)
            self.world.note(f"{self.name} holds {self.jobs[claimed.tag].name}")
        try:
            ours.sort(self.leases, answer)
        except (*lost, Refused):
            self.world.note(f"{self.name}: what is in inboxes stays there")

    def _begin(self, job: Job) -> None:
        self.leases.begin(job.run.id)
        job.run.cancellation = self.runs.enter(job.run.id)
        job.walking = self.world.loop.create_task(walk.walk(job.run, job.model, self.at))
        job.walking.add_done_callback(_heard)  # where the process died, nobody asks for its result

    def _sweep_cancels(self) -> None:
        self._looking = self.world.loop.create_task(
            _quiet(cancellation.sweep(self.redis, ours.KEYS, self.runs))
        )

    # -- what Celery does once a task has ended; it acknowledges late

    def _ended(self, job: Job) -> None:
        assert job.walking is not None
        self.runs.leave(job.run.id)
        try:
            outcome = job.walking.result()
        except StreamFenced:
            job.steps = [self._acknowledge(job)]  # Ignore
            return
        self.world.note(f"{self.name}: {job.name} is {type(outcome).__name__}")
        if isinstance(outcome, Retry):
            self.world.judge.retried[job.run.id] += 1
        job.steps = [self._deliver(job, outcome)]

    def _next(self, job: Job) -> None:
        assert job.steps is not None
        job.busy = True
        try:
            job.steps[0]()
        except (*lost, Refused):
            self.world.note(f"{self.name}: Redis does not take it")
            return  # the next turn tries again
        finally:
            job.busy = False
        job.steps.pop(0)
        if not job.steps:
            self.jobs.pop(job.claimed.tag, None)

    def _deliver(self, job: Job, outcome: Outcome) -> Callable[[], None]:
        def again(after_s: float, retries: int) -> None:
            copy = self.world.copy(job.run.id)
            headers = job.claimed.headers
            text = ours.message(
                job.run.id, copy, to=ours.behind(headers), due=self.clock.wall() + after_s, retries=retries,
                follows=headers["follows"],
            )  # fmt: skip
            self.world.note(f"{self.name} publishes {copy} for in {after_s:.1f} s")
            ours.publish(self._kombu, text)

        def deliver() -> None:
            assert job.steps is not None
            follows = job.claimed.headers["follows"]
            try:
                ours.seat(job.claimed, again).deliver(outcome)
            except Reject:
                job.steps.append(self._give_back(job))
                return
            except (CeleryRetry, Ignore):
                pass
            except Exception as error:  # noqa: BLE001  what the run failed with
                job.steps.append(self._store(job, "FAILURE", error))
            else:
                assert isinstance(outcome, Done | Cut)
                if isinstance(outcome, Done) and follows:
                    job.steps.append(self._publish_next(job, follows))
                job.steps.append(self._store(job, "SUCCESS", outcome.result))
            job.steps.append(self._acknowledge(job))

        return deliver

    def _publish_next(self, job: Job, follows: str) -> Callable[[], None]:
        def publish_next() -> None:
            to = ours.behind(job.claimed.headers)
            text = ours.message(follows, self.world.copy(follows), to=to)
            ours.publish(self._kombu, text)
            self.world.told(follows)

        return publish_next

    def _store(self, job: Job, status: str, result: Any) -> Callable[[], None]:
        if status == "FAILURE":
            told = {"exc_type": type(result).__name__, "exc_message": str(result)}
        else:
            told = {"text": result.text, "stop_reason": result.stop_reason}

        def store() -> None:
            self._kombu.set(ours.RESULTS + job.run.id, json.dumps({"status": status, "result": told}))

        return store

    def _acknowledge(self, job: Job) -> Callable[[], None]:
        def acknowledge() -> None:
            self.leases.done(job.claimed.tag)

        return acknowledge

    def _give_back(self, job: Job) -> Callable[[], None]:
        def give_back() -> None:
            self.leases.give_back(job.claimed.tag)

        return give_back

    # -- the end

    def stop(self) -> None:
        """SIGTERM with no grace left: what has not begun is given back, what runs is stopped."""
        self.stopping = True
        idle = self.leases.idle
        for tag in idle:
            self.jobs.pop(tag, None)
        try:
            self.leases.give_back(*idle)
        except (*lost, Refused):
            self.world.note(f"{self.name}: what it held idle runs out")
        for job in self.jobs.values():
            self.runs.stop(job.run.id, Reason.SHUTDOWN)
        self.world.loop.settle()

    @property
    def idle(self) -> bool:
        return not self.jobs and self._answer is None


async def _quiet(doing: Any) -> None:
    try:
        await doing
    except (*lost, Refused):
        pass


def _heard(walking: "asyncio.Task[Outcome]") -> None:
    if not walking.cancelled():
        walking.exception()
