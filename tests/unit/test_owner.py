"""The owner of a node: what it carries out of what the controller decides."""

import asyncio
from contextlib import ExitStack, suppress

import pytest

from gaelp_tasks.cancellation import Cancelled, Reason
from gaelp_tasks.clients import LocalOllamaClient
from gaelp_tasks.clients.base import ModelInfo
from gaelp_tasks.errors import NodeBusy, NodeFailed, NodeUnreachable
from gaelp_tasks.footprints import ModelShape
from gaelp_tasks.models.capacity import MemorySnapshot, Resident
from gaelp_tasks.models.invocation import Tier
from gaelp_workers.footprints import Footprints
from gaelp_workers.owner import PATIENCE_S, Around, Owner
from gaelp_workers.owners import limits_of
from gaelp_workers.sight import Queued
from support.fakes import FakeBroker, Workbench, turns

GIB = 1 << 30
A, B, THEIRS = "a:latest", "b:latest", "theirs:latest"


class Server(LocalOllamaClient):
    """A model server whose memory is arithmetic; a load ends when the test lets it."""

    def __init__(self, sizes: dict[str, int], total_bytes: int) -> None:
        super().__init__(api_base="http://node:11434")
        self.sizes = sizes
        self.total_bytes = total_bytes
        self.taken_bytes = 0.0  #: by somebody else
        self.there: dict[str, int] = {}
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.may_load = asyncio.Event()
        self.trouble: Exception | None = None
        self.failure: Exception | None = None
        self.early: dict[str, int] = {}  #: listed, though they are still being loaded

    @property
    def memory(self) -> MemorySnapshot:
        free = self.total_bytes - self.taken_bytes - sum(self.there.values())
        return MemorySnapshot(total_bytes=self.total_bytes, free_bytes=max(0, int(free)), source="host")

    async def resident(self) -> tuple[Resident, ...]:
        if self.trouble is not None:
            raise self.trouble
        return tuple(Resident(name=name, size_bytes=size) for name, size in (self.early | self.there).items())

    async def models(self) -> tuple[ModelInfo, ...]:
        return tuple(ModelInfo(name=name, size_bytes=size, digest=name) for name, size in self.sizes.items())

    async def shape(self, model: str | None = None) -> ModelShape:
        assert model is not None
        return ModelShape(name=model, weights_bytes=self.sizes[model])

    async def bring_in(self, name: str) -> None:
        self.loads.append(name)
        await self.may_load.wait()
        if self.failure is not None:
            raise self.failure
        self.there[name] = self.sizes[name]

    async def unload(self, name: str) -> None:
        self.unloads.append(name)
        self.there.pop(name, None)


class Place:
    """A node of 16 GiB with two models of 6 GiB, its owner, and a worker's demand."""

    def __init__(self, broker: FakeBroker, **settings: object) -> None:
        self.server = Server({A: 6 * GIB, B: 6 * GIB, THEIRS: GIB}, 16 * GIB)
        self.queued: list[Queued] = []
        self.preempted: list[str] = []
        self.others_bytes = 0  #: that loads on other nodes will take
        self.bench = Workbench(asyncio.get_running_loop(), broker, self.server, **settings)
        self.at = self.bench.at
        self.stack = ExitStack()
        self.owner = self.another()

    def another(self) -> Owner:
        """The owner of a worker that has just been started."""
        at = self.at
        footprints = Footprints(self.server, at.settings, at.redis, "learned", lambda: 2)
        return Owner(
            at,
            at.nodes[0],
            self.server,
            footprints,
            Around(
                measure=lambda _: self.server.memory,
                others_to_come=lambda: self.others_bytes,
                queued=lambda: self.queued,
                preempt=self.preempted.extend,
            ),
            limits_of(at.settings),
        )

    def runs(self, name: str, model: str, tier: Tier = Tier.INTERACTIVE) -> None:
        asked = self.stack.enter_context(self.at.demand.of(name, model, tier))
        self.at.demand.begins(asked)

    async def waits(self, name: str, model: str, tier: Tier = Tier.INTERACTIVE) -> str:
        """A run that waits for its model, then runs until it is stopped: what became of it."""
        with self.at.demand.of(name, model, tier) as asked:
            await self.owner.load(model)
            self.at.demand.begins(asked)
        return "let in"

    async def look(self, times: int = 1, every_s: float = 1.0) -> None:
        for _ in range(times):
            await self.owner.look()
            await turns()
            self.bench.tick.advance(every_s)


@pytest.fixture
async def place():
    made = Place(FakeBroker())
    await made.look()
    yield made
    made.stack.close()
    made.server.may_load.set()
    await turns()
    await made.bench.redis.aclose()


async def brought_in(place, *models: str) -> None:
    """These models are in memory, loaded by us, and nothing runs."""
    place.server.may_load.set()
    waiting = [asyncio.create_task(place.waits(f"w{model}", model)) for model in models]
    await turns()
    await place.look(4)
    await asyncio.gather(*waiting)


async def test_all_who_wait_for_a_model_share_one_load(place):
    waiting = [asyncio.create_task(place.waits(name, A)) for name in "xyz"]
    await turns()
    await place.look()
    assert place.server.loads == [A]
    assert not any(task.done() for task in waiting)
    place.server.may_load.set()
    await turns()
    await place.look()
    assert [await task for task in waiting] == ["let in"] * 3
    assert place.server.loads == [A]


async def test_who_is_cancelled_while_it_waits_does_not_end_the_load_of_the_others(place):
    gone, stays = (asyncio.create_task(place.waits(name, A)) for name in "xy")
    await turns()
    await place.look()
    gone.cancel()
    with suppress(asyncio.CancelledError):
        await gone
    place.server.may_load.set()
    await place.look(2)
    assert await stays == "let in"


async def test_a_load_that_fails_is_told_to_all_who_wait_and_tried_again_for_the_next(place):
    place.server.failure = NodeFailed("the file is broken")
    place.server.may_load.set()
    first = [asyncio.create_task(place.waits(name, A)) for name in "xy"]
    await turns()
    await place.look()
    for task in first:
        with pytest.raises(NodeFailed, match="the file is broken"):
            await task
    place.server.failure = None
    again = asyncio.create_task(place.waits("z", A))
    await turns()
    await place.look(3)
    assert await again == "let in"
    assert place.server.loads == [A, A]


async def test_without_room_nothing_is_let_in_and_who_waits_is_told_why(place):
    place.server.taken_bytes = 13 * GIB
    waiting = asyncio.create_task(place.waits("x", A))
    await turns()
    await place.look(2)
    assert place.owner.capacity == {A: 0, B: 0, THEIRS: 0}
    assert place.owner.slots(2) == 0
    [told] = [one for one in place.owner.by_model() if one.model == A]
    assert told.why
    assert not waiting.done()
    await place.look(int(PATIENCE_S) + 1)
    with pytest.raises(NodeBusy, match="a:latest waits: "):
        await waiting
    assert place.server.loads == []


async def test_a_model_that_waits_in_a_queue_gets_the_room_of_an_idle_one(place):
    place.server.may_load.set()
    waiting = asyncio.create_task(place.waits("x", A))
    await turns()
    await place.look(3)
    assert await waiting == "let in"
    place.queued = [Queued(B, Tier.BATCH, 3, place.bench.tick())]
    await place.look(6)
    assert place.server.unloads == [A]
    assert place.server.loads == [A, B]
    assert place.server.there.keys() == {B}
    assert place.owner.capacity is not None
    assert place.owner.capacity[B] == 2


async def test_short_memory_stops_the_runs_of_the_least_urgent_model_and_unloads_it(place):
    at = place.at
    place.server.total_bytes = 24 * GIB
    await brought_in(place, A, B)
    place.runs("urgent", A)
    place.runs("late", B, Tier.BACKGROUND)
    stops = {name: at.runs.enter(name) for name in ("urgent", "late")}
    for _ in range(8):
        place.server.taken_bytes += GIB
        await place.look()
    assert [stop.reason for stop in stops.values()] == [None, None]
    place.server.taken_bytes += 2.2 * GIB
    await place.look()
    assert stops["late"].reason is Reason.EVICTION
    assert stops["urgent"].reason is None
    assert place.server.unloads == [], "its run has not ended yet"
    place.stack.close()
    for _ in range(200):
        await asyncio.sleep(0.01)
        if place.bench.broker.sync.hget(at.keys.counts, "evicted"):
            break
    assert place.server.unloads == [B]
    assert place.bench.broker.sync.hget(at.keys.counts, "evicted") == "1"
    with pytest.raises(Cancelled):
        stops["late"].check()


async def test_models_of_others_are_used_and_never_unloaded(place):
    place.server.there[THEIRS] = GIB
    await place.look(2)
    assert place.owner.capacity is not None
    assert place.owner.capacity[THEIRS] == 2
    place.server.taken_bytes = 14 * GIB
    await place.look(5)
    assert place.server.unloads == []
    [told] = [one for one in place.owner.by_model() if one.model == THEIRS]
    assert told.others


async def test_a_worker_started_anew_knows_its_models_and_what_they_took(place):
    await brought_in(place, A)
    place.server.there[THEIRS] = GIB
    await place.look()
    place.owner = place.another()
    await place.owner.footprints.recall()
    await place.look(2)
    told = {one.model: one.others for one in place.owner.by_model()}
    assert told == {A: False, THEIRS: True}
    assert place.owner.footprints.measured()[A] == 6 * GIB


async def test_what_was_measured_of_another_file_counts_no_more(place):
    await brought_in(place, A)
    other = place.another()

    async def models() -> tuple[ModelInfo, ...]:
        return (ModelInfo(name=A, size_bytes=6 * GIB, digest="a newer one"),)

    place.server.models = models  # type: ignore[method-assign]
    await other.footprints.recall()
    await other.footprints.look(await models())
    assert other.footprints.measured() == {}


async def test_a_server_that_does_not_answer_is_no_empty_server(place):
    await brought_in(place, A)
    before = place.owner.capacity
    place.server.trouble = NodeUnreachable("gone", node="http://node:11434")
    serving = asyncio.create_task(place.owner.serve())
    await turns()
    late = asyncio.create_task(place.waits("y", B))
    with pytest.raises(NodeUnreachable, match="gone"):
        await asyncio.wait_for(late, 5)
    assert place.owner.capacity == before
    assert place.server.unloads == []
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving
    assert place.server.loader is None


async def test_a_higher_tier_has_the_runs_preempted_of_the_model_that_makes_room(place):
    await brought_in(place, A)
    place.runs("long", A, Tier.BACKGROUND)
    place.queued = [Queued(B, Tier.BACKGROUND, 1, place.bench.tick())]
    await place.look(2)
    assert place.preempted == []
    place.queued = [Queued(B, Tier.INTERACTIVE, 1, place.bench.tick())]
    await place.look(1)
    assert place.preempted == ["long"]


async def test_a_model_that_is_listed_while_it_loads_is_not_there_yet(place):
    """Ollama lists it, with all that it will take, from the beginning of its load."""
    waiting = asyncio.create_task(place.waits("x", A))
    await turns()
    await place.look()
    place.server.early = {A: 6 * GIB}
    await place.look(3)
    assert not waiting.done()
    assert place.owner.by_model()[0].phase == "loading"
    assert place.owner.moves(A)
    place.server.early = {}
    place.server.may_load.set()
    await turns()
    await place.look(2)
    assert await waiting == "let in"
    assert not place.owner.moves(A)
    assert place.owner.is_there(A)


async def test_a_load_on_another_node_of_the_machine_is_no_fall_of_memory(place):
    await brought_in(place, A)
    place.runs("r", A)
    await place.look(20)
    place.others_bytes = 6 * GIB
    place.bench.tick.advance(-0.9)
    await place.look(1, every_s=0.1)
    assert place.server.unloads == []
    assert place.owner.capacity is not None
    assert place.owner.capacity[A] == 2
    assert place.owner.capacity[B] == 0, "what the other one will take is not ours to give"


async def test_a_change_of_the_pool_is_no_fall_of_memory(place):
    await brought_in(place, A)
    place.runs("r", A)
    seen = place.server.memory
    other = seen.model_copy(update={"source": "gpu", "total_bytes": 8 * GIB, "free_bytes": 4 * GIB})
    place.server.__class__ = type("Other", (Server,), {"memory": other})
    place.bench.tick.advance(-0.9)
    await place.look(2, every_s=0.1)
    assert place.owner.capacity is not None
    assert place.owner.capacity[A] == 2


async def test_a_model_that_others_keep_in_memory_is_theirs_after_some_tries(place):
    await brought_in(place, A)
    keeps: list[str] = []

    async def unload(name: str) -> None:
        keeps.append(name)

    place.server.unload = unload
    place.queued = [Queued(B, Tier.INTERACTIVE, 1, place.bench.tick())]
    await place.look(30)
    assert 1 < len(keeps) <= 7, "it is not asked for ever"
    [told] = [one for one in place.owner.by_model() if one.model == A]
    assert told.others
    assert told.slots == 2


async def test_a_newer_file_of_a_model_has_a_shape_of_its_own(place):
    await brought_in(place, A)
    place.server.sizes[A] = 9 * GIB
    place.server.there.clear()

    async def models() -> tuple[ModelInfo, ...]:
        return (ModelInfo(name=A, size_bytes=9 * GIB, digest="newer"),)

    place.server.models = models
    await place.look(2)
    memory = place.server.memory
    assert place.owner.footprints.all(memory, {}, 0)[A].total_bytes == 9 * GIB
    assert place.owner._state is not None
    assert A not in place.owner._state.measured


async def test_a_model_that_can_never_fit_is_told_so_at_once_and_holds_nobody(place):
    """Its runs come all the same, or nobody would ever hear of it, cancelled ones included."""
    place.server.sizes["huge:latest"] = 40 * GIB
    place.queued = [Queued("huge:latest", Tier.INTERACTIVE, 1, place.bench.tick())]
    await place.look(2)
    assert place.owner.hopeless == {"huge:latest"}
    waiting = asyncio.create_task(place.waits("x", "huge:latest"))
    await turns()
    await place.look()
    with pytest.raises(NodeBusy, match="huge:latest waits: "):
        await waiting
    assert place.server.loads == []
