"""The owner of one node: looks at its memory, has the controller decide, and carries the decisions out.

Runs are let in by the claim, which takes no more of a model than its `capacity`; a run whose model is not in
memory waits in `load`, where all who wait share one load. Models of others are seen and never unloaded.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf

from gaelp_tasks.clients.local import LocalOllamaClient
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.errors import NodeError, NodeUnreachable
from gaelp_tasks.models.capacity import MemorySnapshot, ModelSlots, Resident
from gaelp_tasks.runtime import going_on
from gaelp_tasks.tasks.demand import Need
from gaelp_tasks.tasks.resources import Node, Resources
from gaelp_workers import controller
from gaelp_workers.decisions import (
    Alert,
    Decision,
    Hold,
    HoldReason,
    Load,
    NextPoll,
    Snapshot,
    State,
    Unload,
)
from gaelp_workers.footprints import Footprints
from gaelp_workers.ledger import Held, Phase, still_to_come
from gaelp_workers.loader import LEAST_S, Loader
from gaelp_workers.sight import ENDLESS, Queued, held_bytes, less, snapshot
from gaelp_workers.thresholds import Limits, Trend
from gaelp_workers.wording import in_words

__all__ = ["Around", "Owner"]

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0  #: a claimed run waits so long for a load to begin; then it is for others, or for later
RECALL_S = 1.0  #: for Redis to tell what was learned before
LISTED_S = 1.0  #: for the server to list its models; then the last list counts, with memory as it is now
FRESH = 1.5  #: polls; what was seen then counts as seen now
#: of them a new one is worth a look at once
URGENT = frozenset({HoldReason.MAKING_ROOM, HoldReason.VERIFYING, HoldReason.UNLOADING, HoldReason.LOADING})


@dataclass(frozen=True, kw_only=True)
class Around:
    """What an owner is told, and may ask for, outside its node."""

    #: the node's memory, from what its server lists; None: nothing here tells of it
    measure: Callable[[Sequence[Resident]], MemorySnapshot] | None
    others_to_come: Callable[[], int] = lambda: 0  #: bytes that loads on other nodes of its machine will take
    queued: Callable[[], Iterable[Queued]] = tuple  #: what waits in queues for its models
    preempt: Callable[[Iterable[str]], None] = lambda _: (
        None
    )  #: stops those of these runs that may be stopped


class Owner:
    """Owns `node`; `runs_by` is the client by which runs call it."""

    def __init__(
        self,
        at: Resources,
        node: Node,
        runs_by: LocalOllamaClient,
        footprints: Footprints,
        around: Around,
        limits: Limits,
    ) -> None:
        self.footprints = footprints
        self.capacity: Mapping[str, int] | None = None  #: model -> runs that may be here; None: not known yet
        self.news = asyncio.Event()  #: the capacity has changed; who waits for it clears it
        self._at = at
        self._node = node
        self._client = runs_by
        self._around = around
        self._others_bytes = 0
        self._memory: MemorySnapshot | None = None
        self._listed: Sequence[Resident] = ()
        self._limits = limits
        self._state: State | None = None
        self._seen: Snapshot | None = None
        self._holds: dict[str, Hold] = {}
        self._told: dict[str, HoldReason] = {}
        self._ours: set[str] = set()
        self._keeping: asyncio.Task[None] | None = None
        self._disk_at = -inf
        self._changed = asyncio.Event()
        self._loader = Loader(at, runs_by, self._changed)

    # --- the duty ---

    async def serve(self) -> None:
        """Look and act, until cancelled; then its server loads for whoever asks, as without an owner."""
        self._client.loader, self._client.is_there, self._client.moves = self.load, self.is_there, self.moves
        self._at.demand.heard_by.append(self._hear)
        try:
            with suppress(TimeoutError):  # then nothing was learned before
                async with asyncio.timeout(RECALL_S):
                    await self.footprints.recall()
            while going_on():
                after_s = self._limits.poll_s
                try:
                    after_s = await self.look()
                except NodeError as error:
                    self._loader.give_up(error)
                except Exception:
                    logger.exception("The owner of %s could not look; it tries again.", self._node.url)
                    self._loader.give_up(self._loader.busy("Its owner could not look."))
                with suppress(TimeoutError):
                    async with asyncio.timeout(after_s):
                        await self._changed.wait()
                await asyncio.sleep(LEAST_S)
                self._changed.clear()
        finally:
            self._at.demand.heard_by.remove(self._hear)
            self._client.disown()
            self._loader.end()

    @property
    def to_come_bytes(self) -> int:
        """What loads under way will still take."""
        if self._state is None or self._seen is None:
            return 0
        trend = self._state.trend  # what it has taken already, as far as a fall tells of it
        to_come = still_to_come(self._state.models, self._seen.resident)
        return max(0, to_come - trend.credit_bytes - trend.sudden_bytes)

    def _hear(self) -> None:
        """A run has ended; that matters only where somebody waits for what it leaves."""
        if any(hold.reason in URGENT for hold in self._holds.values()):
            self._changed.set()

    async def load(self, name: str) -> None:
        """Have the model in memory: one load for all who ask. Raises what the load failed with, NodeBusy."""
        model = canonical(name)
        if self._is_not_ours_to_load(model):
            await self._client.bring_in(name)
            return
        await self._loader.wait(model)

    @property
    def hopeless(self) -> frozenset[str]:
        """Models that wait and would not fit if nothing else were loaded: their runs come to be told so."""
        return frozenset(name for name, hold in self._holds.items() if hold.reason is HoldReason.TOO_BIG)

    def is_there(self, model: str) -> bool:
        """Whether the last look has seen it in memory, loaded by us, and that was just now."""
        state = self._state
        if state is None or self._at.tick() - state.at_s > FRESH * self._limits.poll_s:
            return False
        held = state.models.get(model)
        return held is not None and held.phase is Phase.LOADED

    def moves(self, model: str) -> bool:
        """Whether it is listed and no use: it is being loaded, or unloaded."""
        held = self._state.models.get(model) if self._state is not None else None
        return held is not None and held.phase in (Phase.LOADING, Phase.UNLOADING)

    def _is_not_ours_to_load(self, model: str) -> bool:
        """What the node does not have, its server refuses; what others have there with another context."""
        state, seen, models = self._state, self._seen, self._node.models
        if state is None or seen is None:
            return False
        missing = bool(models) and model not in map(canonical, models)
        return missing or (model in seen.loaded and model not in state.models)

    async def look(self) -> float:
        """One look and what follows from it; the seconds until the next one. Raises NodeError."""
        await self._look_at_disk()
        try:
            async with asyncio.timeout(max(LISTED_S, self._limits.poll_s)):
                self._listed = await self._node.client.resident()
        except TimeoutError:
            if self._state is None:
                raise NodeUnreachable("It does not list what is in memory.", node=self._node.url) from None
        measure = self._around.measure
        memory = ENDLESS if measure is None else measure(self._listed)
        to_come = self._around.others_to_come()
        memory = less(memory, to_come)
        seen = self._take_in(memory, self._listed)
        now = self._at.tick()
        known = self._compared(self._state or self._begin(seen, now), seen, memory, to_come, now)
        state, decisions = controller.step(
            self._adopted(self._forgotten(known), seen, now), seen, now, self._limits
        )
        self._state, self._seen, self._memory, self._others_bytes = state, seen, memory, to_come
        before, self.capacity = self.capacity, controller.capacity(state, seen, self._limits)
        if before != self.capacity:
            self.news.set()
        after_s = self._carry_out(decisions, now)
        self._answer(seen, state, now)
        self._make_way(seen, state)
        self._ours = {model for model in self._ours if model in state.models or model in self._asked()}
        self._keep(state, seen)
        return after_s

    def _keep(self, state: State, seen: Snapshot) -> None:
        """Remember what was learned, beside the looks: Redis may hang while memory goes."""
        if self._keeping is None or self._keeping.done():
            ours = frozenset(self._ours & seen.resident.keys())
            self._keeping = asyncio.create_task(self.footprints.keep(state.measured, ours))

    # --- seeing ---

    async def _look_at_disk(self) -> None:
        """What models there are changes seldom."""
        now = self._at.tick()
        if now - self._disk_at >= self._limits.poll_s:
            await self.footprints.look(await self._node.client.models())
            self._disk_at = now

    def _take_in(self, memory: MemorySnapshot, listed: Sequence[Resident]) -> Snapshot:
        resident = {
            name: held_bytes(model, memory.source)
            for model in listed
            if (name := canonical(model.name))
            not in self._loader.loads  # Ollama lists it from the load's beginning
        }
        brought, self._loader.brought = self._loader.brought - resident.keys(), set()
        return snapshot(
            memory,
            resident,
            loaded=resident.keys() | brought,
            failed=self._loader.failures,
            needs=self._needs(resident.keys()),
            queued=self._around.queued(),
            footprints=self.footprints.all(memory, resident, self._limits.soft_line(memory.total_bytes)),
        )

    def _needs(self, listed: Collection[str]) -> list[Need]:
        """Of the runs of this worker those that are this node's, or may become so."""
        needs = self._at.demand.needs()
        if len(self._at.nodes) == 1:
            return needs
        found = []
        for need in needs:
            tally = self._at.tallies.get(need.id)
            place = tally.node if tally else ""
            if place == self._node.url or (
                not place
                and (
                    need.asked.model in self._loader.waits_since
                    if not need.asked.runs
                    else need.asked.model in listed
                )
            ):
                found.append(need)
        return found

    def _asked(self) -> set[str]:
        return {need.asked.model for need in self._at.demand.needs()}

    def _begin(self, seen: Snapshot, now: float) -> State:
        self._ours = set(self.footprints.ours() & seen.loaded)
        return controller.start(seen.free_bytes, now, self.footprints.measured())

    def _forgotten(self, state: State) -> State:
        """Without what was measured of files that have changed."""
        changed = self.footprints.changed
        kept = {model: size for model, size in state.measured.items() if model not in changed}
        return state._replace(measured=kept) if changed else state

    def _compared(
        self, state: State, seen: Snapshot, memory: MemorySnapshot, to_come_bytes: int, now: float
    ) -> State:
        """With nothing in its trend that is no fall: a change of pool, loads that begin on other nodes."""
        before = self._memory
        if before is None or (before.source, before.total_bytes) != (memory.source, memory.total_bytes):
            ours = sum(seen.resident.get(model, 0) for model in state.models)
            return state._replace(
                believed_bytes=seen.free_bytes, trend=Trend(now, seen.free_bytes, ours), at_s=now
            )
        shift = to_come_bytes - self._others_bytes
        trend = state.trend._replace(free_bytes=state.trend.free_bytes - shift)
        return state._replace(trend=trend, believed_bytes=state.believed_bytes - shift)

    def _adopted(self, state: State, seen: Snapshot, now: float) -> State:
        """With those of ours that came unasked: an earlier worker's, or a call has met their unload."""
        models = dict(state.models)
        before = self._seen.loaded if self._seen is not None else seen.loaded
        self._ours |= (seen.loaded - before) & self._asked()
        for model in (self._ours & seen.loaded) - models.keys():
            models[model] = Held(Phase.LOADED, seen.resident.get(model, 0), 0, now, 0.0)
        return state._replace(models=models)

    # --- acting ---

    def _carry_out(self, decisions: Sequence[Decision], now: float) -> float:
        after_s = self._limits.poll_s
        self._loader.failures.clear()
        self._holds = {}
        for decision in decisions:
            match decision:
                case Load(model, need_bytes):
                    self._tell("load", model=model, need_bytes=need_bytes)
                    self._ours.add(model)
                    self._loader.load(model)
                case Unload(model, reason, cut):
                    self._tell("unload", model=model, reason=reason, cut=cut)
                    self._loader.unload(model, cut)
                case Alert(text):
                    logger.error("%s: %s", self._node.url, text)
                case Hold(model, _, until_s):
                    self._holds[model] = decision
                    if until_s is not None:
                        after_s = min(after_s, max(LEAST_S, until_s - now))
                case NextPoll(poll_s):
                    after_s = min(after_s, poll_s)
        self._tell_holds()
        return after_s

    def _answer(self, seen: Snapshot, state: State, now: float) -> None:
        """Let those go on whose model is there; those for whom no load begins in time are for later."""
        for model, since in tuple(self._loader.waits_since.items()):
            held = state.models.get(model)
            if model in seen.loaded and (held is None or held.phase is Phase.LOADED):
                self._loader.settle(model)
            elif held is None and (model in self.hopeless or now - since > PATIENCE_S):
                hold = self._holds.get(model)
                why = in_words(hold, seen, state, self._limits) if hold else "no load has begun"
                self._loader.settle(model, self._loader.busy(f"{model} waits: {why}"))

    def _make_way(self, seen: Snapshot, state: State) -> None:
        """A model that makes room for a higher tier does so at once, where its runs may be preempted."""
        for model, held in state.models.items():
            if held.phase is not Phase.DRAINING:
                continue
            first = next(iter(seen.waiting.get(held.room_for, ())), None)
            runs = seen.running.get(model, ())
            if first is not None and all(run.tier.rank > first.tier.rank for run in runs):
                self._around.preempt(run.id for run in runs)

    # --- telling ---

    def slots(self, share: int) -> int:
        """Invocations that may run here now: of what is in memory, else of the model that may have most.

        `share` while nothing is known, and where the node has no model that writes text.
        """
        seen, capacity = self._seen, self.capacity or {}
        writers = {model: slots for model, slots in capacity.items() if not self.footprints.embeds(model)}
        if seen is None or self._state is None or not writers:
            return share
        there = (seen.loaded | self._state.models.keys()) & writers.keys()
        return sum(writers[model] for model in there) or max(writers.values())

    def by_model(self) -> tuple[ModelSlots, ...]:
        """What each model has here, for those who look."""
        seen, state = self._seen, self._state
        if seen is None or state is None or self.capacity is None:
            return ()
        ahead_s = self._at.now() - self._at.tick()
        seats = self._at.seats.taken
        busy = [need.asked.model for need in self._needs(seen.loaded) if need.id not in seats]
        told = []
        for model in sorted({*seen.loaded, *state.models, *self._holds}):
            held, hold = state.models.get(model), self._holds.get(model)
            phase = held.phase.value if held else "loaded" if model in seen.loaded else ""
            until_s = hold.until_s if hold else None
            told.append(
                ModelSlots(
                    model=model,
                    slots=self.capacity.get(model, 0),
                    busy=busy.count(model),
                    run_s=self._node.meter.run_s(model),
                    phase=phase,
                    others=held is None and model in seen.loaded,
                    why=in_words(hold, seen, state, self._limits) if hold else "",
                    until=None if until_s is None else until_s + ahead_s,
                )
            )
        return tuple(told)

    def _tell(self, what: str, **facts: object) -> None:
        told = {"node": self._node.url, "decision": what, **facts}
        logger.info("Decided: %s", json.dumps(told, default=str))

    def _tell_holds(self) -> None:
        """Each once, when its reason changes."""
        reasons = {model: hold.reason for model, hold in self._holds.items()}
        for model, reason in reasons.items():
            if self._told.get(model) is not reason and reason is not HoldReason.BUSY:
                self._tell("hold", model=model, reason=reason, until_s=self._holds[model].until_s)
        self._told = reasons
