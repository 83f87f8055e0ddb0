"""The owner of one node: looks at its memory, has the controller decide, and carries the decisions out.

Runs are let in by the claim, which takes no more of a model than its `capacity`; a run whose model is not in
memory waits in `load`, where all who wait share one load. Models of others are seen and never unloaded.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf

from gaelp_tasks import counts
from gaelp_tasks.cancellation import Reason
from gaelp_tasks.clients.local import LocalOllamaClient
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.connections import unavailable
from gaelp_tasks.errors import NodeBusy, NodeError
from gaelp_tasks.models.capacity import MemorySnapshot, ModelSlots, Resident
from gaelp_tasks.settings import Settings
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
from gaelp_workers.sight import ENDLESS, Queued, held_bytes, snapshot
from gaelp_workers.thresholds import GIB, Limits
from gaelp_workers.wording import in_words

__all__ = ["Owner", "limits_of"]

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0  #: a claimed run waits so long for a load to begin; then it is for others, or for later
CUT_S = 1.0  #: for the runs of a model to end before it is unloaded; the server waits for those that do not
LOAD_AGAIN_S = 1.0  #: after a load that failed; the runs' own policy of retries makes longer pauses
FRESH = 1.5  #: polls; what was seen then counts as seen now
LEAST_S = 0.01  #: between two looks
#: of them a new one is worth a look at once
URGENT = frozenset({HoldReason.MAKING_ROOM, HoldReason.VERIFYING, HoldReason.UNLOADING, HoldReason.LOADING})


def limits_of(settings: Settings) -> Limits:
    """What the node's owner allows, by the settings."""
    reserve_bytes = int(settings.os_reserve)
    return Limits(
        reserve_bytes=reserve_bytes,
        safety_factor=settings.safety_factor,
        soft_bytes=min(GIB, reserve_bytes // 2),
        poll_s=settings.poll_interval_s,
        fast_poll_s=min(Limits().fast_poll_s, settings.poll_interval_s),
        load_s=settings.load_timeout_s,
        most_wait_s=settings.max_wait_s or inf,
        load_again_s=LOAD_AGAIN_S,
    )


class Owner:
    """Owns `node`; `runs_by` is the client by which runs call it.

    `measure` tells its memory from what its server lists; None: nothing here tells of it. `queued` tells what
    waits in queues for its models, `preempt` stops runs that may be stopped for a higher tier.
    """

    def __init__(
        self,
        at: Resources,
        node: Node,
        runs_by: LocalOllamaClient,
        footprints: Footprints,
        *,
        measure: Callable[[Sequence[Resident]], MemorySnapshot] | None,
        queued: Callable[[], Iterable[Queued]] = tuple,
        preempt: Callable[[Iterable[str]], None] = lambda _: None,
        limits: Limits | None = None,
    ) -> None:
        self.footprints = footprints
        self.capacity: Mapping[str, int] | None = None  #: model -> runs that may be here; None: not known yet
        self.news = asyncio.Event()  #: the capacity has changed; who waits for it clears it
        self._at = at
        self._node = node
        self._client = runs_by
        self._measure = measure
        self._queued = queued
        self._preempt = preempt
        self._limits = limits or limits_of(at.settings)
        self._state: State | None = None
        self._seen: Snapshot | None = None
        self._holds: dict[str, Hold] = {}
        self._told: dict[str, HoldReason] = {}
        self._ours: set[str] = set()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._unloads: set[asyncio.Task[None]] = set()
        self._brought: set[str] = set()
        self._failures: dict[str, NodeError] = {}
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._waits_since: dict[str, float] = {}
        self._disk_at = -inf
        self._changed = asyncio.Event()

    # --- the duty ---

    async def serve(self) -> None:
        """Look and act, until cancelled; then its server loads for whoever asks, as without an owner."""
        self._client.loader, self._client.is_there = self.load, self.is_there
        self._at.demand.heard_by.append(self._hear)
        try:
            await self.footprints.recall()
            while not _cancelled():
                after_s = self._limits.poll_s
                try:
                    after_s = await self.look()
                except NodeError as error:
                    self._give_up(error)
                except Exception:
                    logger.exception("The owner of %s could not look; it tries again.", self._node.url)
                with suppress(TimeoutError):
                    async with asyncio.timeout(after_s):
                        await self._changed.wait()
                await asyncio.sleep(LEAST_S)
                self._changed.clear()
        finally:
            self._at.demand.heard_by.remove(self._hear)
            self._client.loader, self._client.is_there = self._client.bring_in, lambda _: False
            self._give_up(NodeBusy("This worker ends.", node=self._node.url))
            for task in (*self._loads.values(), *self._unloads):
                task.cancel()

    @property
    def to_come_bytes(self) -> int:
        """What loads under way will still take."""
        if self._state is None or self._seen is None:
            return 0
        return still_to_come(self._state.models, self._seen.resident)

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
        waiter = self._waiters.get(model)
        if waiter is None:
            waiter = self._waiters[model] = asyncio.get_running_loop().create_future()
            self._waits_since[model] = self._at.tick()
        self._changed.set()
        await asyncio.shield(waiter)

    def is_there(self, model: str) -> bool:
        """Whether the last look has seen it in memory, loaded by us, and that was just now."""
        state = self._state
        if state is None or self._at.tick() - state.at_s > FRESH * self._limits.poll_s:
            return False
        held = state.models.get(model)
        return held is not None and held.phase is Phase.LOADED

    def _is_not_ours_to_load(self, model: str) -> bool:
        """What the node does not have, its server refuses; what others have there with another context."""
        state, seen, models = self._state, self._seen, self._node.models
        if state is None or seen is None:
            return False
        missing = bool(models) and model not in map(canonical, models)
        return missing or (model in seen.loaded and model not in state.models)

    async def look(self) -> float:
        """One look and what follows from it; the seconds until the next one. Raises NodeError."""
        listed = await self._node.client.resident()
        memory = ENDLESS if self._measure is None else self._measure(listed)
        await self._look_at_disk()
        seen = self._take_in(memory, listed)
        now = self._at.tick()
        known = self._state or self._begin(seen, now)
        state, decisions = controller.step(self._adopted(known, seen, now), seen, now, self._limits)
        self._state, self._seen = state, seen
        before, self.capacity = self.capacity, controller.capacity(state, seen, self._limits)
        if before != self.capacity:
            self.news.set()
        after_s = self._carry_out(decisions, now)
        self._answer(seen, state, now)
        self._make_way(seen, state)
        self._ours = {model for model in self._ours if model in state.models or model in self._asked()}
        await self.footprints.keep(state.measured, frozenset(self._ours & seen.resident.keys()))
        return after_s

    # --- seeing ---

    async def _look_at_disk(self) -> None:
        """What models there are changes seldom."""
        now = self._at.tick()
        if now - self._disk_at >= self._limits.poll_s:
            await self.footprints.look(await self._node.client.models())
            self._disk_at = now

    def _take_in(self, memory: MemorySnapshot, listed: Sequence[Resident]) -> Snapshot:
        resident = {canonical(model.name): held_bytes(model, memory.source) for model in listed}
        brought, self._brought = self._brought - resident.keys(), set()
        return snapshot(
            memory,
            resident,
            loaded=resident.keys() | brought,
            failed=self._failures,
            needs=self._needs(resident.keys()),
            queued=self._queued(),
            footprints=self.footprints.all(memory, resident),
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
                and (need.asked.model in self._waiters if not need.asked.runs else need.asked.model in listed)
            ):
                found.append(need)
        return found

    def _asked(self) -> set[str]:
        return {need.asked.model for need in self._at.demand.needs()}

    def _begin(self, seen: Snapshot, now: float) -> State:
        self._ours = set(self.footprints.ours() & seen.loaded)
        return controller.start(seen.free_bytes, now, self.footprints.measured())

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
        self._failures.clear()
        self._holds = {}
        for decision in decisions:
            match decision:
                case Load(model, need_bytes):
                    self._tell("load", model=model, need_bytes=need_bytes)
                    self._ours.add(model)
                    self._loads[model] = asyncio.create_task(self._bring_in(model))
                case Unload(model, reason, cut):
                    self._tell("unload", model=model, reason=reason, cut=cut)
                    self._start_unload(model, cut)
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

    async def _bring_in(self, model: str) -> None:
        try:
            await self._client.bring_in(model)
            self._brought.add(model)
        except NodeError as error:
            logger.warning("%s did not load %s: %s", self._node.url, model, error)
            self._failures[model] = error
            self._settle(model, error)
        finally:
            self._loads.pop(model, None)
            self._changed.set()

    def _start_unload(self, model: str, cut: Sequence[str]) -> None:
        for invocation_id in cut:
            self._at.runs.stop(invocation_id, Reason.EVICTION)
        if (load := self._loads.get(model)) is not None:
            load.cancel()  # its connection closes, and the server gives the load up
        self._settle(model, NodeBusy(f"{model} gives way: memory is short.", node=self._node.url))
        task = asyncio.create_task(self._let_go(model, len(cut)))
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)

    async def _let_go(self, model: str, cut: int) -> None:
        with suppress(*unavailable):
            if cut:
                await self._at.redis.hincrby(self._at.keys.counts, counts.EVICTED, cut)
        until = self._at.tick() + CUT_S
        while any(need.asked.runs and need.asked.model == model for need in self._at.demand.needs()):
            if self._at.tick() > until:
                break
            await asyncio.sleep(LEAST_S)
        try:
            await self._client.unload(model)
        except NodeError as error:
            logger.warning("%s did not unload %s: %s", self._node.url, model, error)
        self._changed.set()

    def _answer(self, seen: Snapshot, state: State, now: float) -> None:
        """Let those go on whose model is there; those for whom no load begins in time are for later."""
        for model in tuple(self._waiters):
            held = state.models.get(model)
            if model in seen.loaded and (held is None or held.phase is Phase.LOADED):
                self._settle(model)
            elif held is None and now - self._waits_since[model] > PATIENCE_S:
                hold = self._holds.get(model)
                why = in_words(hold, seen, state, self._limits) if hold else "no load has begun"
                self._settle(model, NodeBusy(f"{model} waits: {why}", node=self._node.url))

    def _settle(self, model: str, error: NodeError | None = None) -> None:
        waiter = self._waiters.pop(model, None)
        self._waits_since.pop(model, None)
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)
            waiter.exception()  # nobody may be left who hears it

    def _give_up(self, error: NodeError) -> None:
        """The server does not answer: nothing is known, and nobody shall wait for it here."""
        for model in tuple(self._waiters):
            if model not in self._loads:
                self._settle(model, error)

    def _make_way(self, seen: Snapshot, state: State) -> None:
        """A model that makes room for a higher tier does so at once, where its runs may be preempted."""
        for model, held in state.models.items():
            if held.phase is not Phase.DRAINING:
                continue
            first = next(iter(seen.waiting.get(held.room_for, ())), None)
            runs = seen.running.get(model, ())
            if first is not None and all(run.tier.rank > first.tier.rank for run in runs):
                self._preempt(run.id for run in runs)

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


def _cancelled() -> bool:
    """On Python 3.11 a timeout can swallow the cancel (cpython #86296)."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
