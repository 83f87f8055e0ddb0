"""Who may start, which model to load, and what makes room for it. Pure."""

from collections.abc import Iterable, Sequence
from math import inf, isfinite
from typing import NamedTuple

from gaelp_workers import ledger
from gaelp_workers.decisions import (
    Admit,
    Decision,
    Hold,
    HoldReason,
    Load,
    Snapshot,
    State,
)
from gaelp_workers.eviction import NOBODYS, RANKS, Run, sacrifice, unused
from gaelp_workers.ledger import Footprint, Held, Phase, holds
from gaelp_workers.thresholds import Level, Limits

__all__ = ["Round", "need", "room"]

WAITS = {
    Phase.LOADING: HoldReason.LOADING,
    Phase.DRAINING: HoldReason.DRAINING,
    Phase.UNLOADING: HoldReason.UNLOADING,
}


def need(state: State, footprint: Footprint, model: str, limits: Limits) -> int:
    """Bytes to reserve for a load of this model."""
    return ledger.need_bytes(footprint, state.measured.get(model), limits.safety_factor)


def room(state: State, seen: Snapshot, limits: Limits) -> int:
    """Bytes that a load may take now, with nothing unloaded for it; may be below 0."""
    to_come = ledger.still_to_come(state.models, seen.resident)
    return state.believed_bytes - to_come - limits.soft_line(seen.total_bytes)


class Wish(NamedTuple):
    """A model that is not in memory and that runs wait for; the most urgent sorts first."""

    rank: int  #: of the highest tier that waits; 0 as well once a run of any has waited its maximum
    since_s: float  #: when the oldest of these came; later where one of the model was let in since
    model: str
    first_s: float  #: when it goes before all tiers; inf: never


class Round:
    """One look over all that waits: `run` once. It changes nothing but itself."""

    def __init__(self, state: State, seen: Snapshot, now: float, limits: Limits) -> None:
        self.state, self.seen, self.now, self.limits = state, seen, now, limits
        self.models = dict(state.models)
        self.busy = {model: len(runs) for model, runs in seen.running.items()}
        self.room = room(state, seen, limits)
        self.wishes = {
            model: self._wish(model, runs)
            for model, runs in seen.waiting.items()
            if runs and model not in state.models and model not in seen.loaded
        }
        self.decisions: list[Decision] = []
        self.unload: list[str] = []  #: idle models whose room is needed

    def run(self) -> None:
        """Fill free slots first, then see to the models that are not loaded, the most urgent one first."""
        self._stop_needless_drains()
        for model, runs in self.seen.waiting.items():
            if not runs:
                continue
            held = self.models.get(model)
            if held is not None and held.phase is not Phase.LOADED:
                self._hold(model, WAITS[held.phase], held.until_s if held.phase is Phase.LOADING else None)
            elif model in self.seen.loaded:
                self._admit(model)
        self._see_to(sorted(self.wishes.values()))

    def _wish(self, model: str, runs: Sequence[Run]) -> Wish:
        served_s = self.state.served.get(model, -inf)
        rank = min(RANKS[run.tier] for run in runs)
        first_s = max(served_s, min(run.since_s for run in runs)) + self.limits.most_wait_s
        since_s = max(served_s, min(run.since_s for run in runs if RANKS[run.tier] == rank))
        if self.now >= first_s:
            rank, since_s = 0, min(since_s, first_s - self.limits.most_wait_s)
        return Wish(rank, since_s, model, first_s)

    def _stop_needless_drains(self) -> None:
        """A model goes on that is drained for one that needs no room, or could not have it.

        That is loaded by now, nobody waits for it any more, higher tiers have come, or others took memory.
        """
        for model, held in self.state.models.items():
            if held.phase is Phase.DRAINING:
                wish = self.wishes.get(held.room_for)
                if wish is None or self._need(wish.model) > self._reach(wish.rank):
                    self.models[model] = held._replace(phase=Phase.LOADED, room_for="")

    def _admit(self, model: str) -> None:
        footprint = self.seen.footprints.get(model)
        if footprint is None:
            self._hold(model, HoldReason.UNKNOWN)
            return
        runs, busy = self.seen.waiting[model], self.busy.get(model, 0)
        count = min(len(runs), max(0, footprint.num_parallel - busy))
        self.decisions.extend(Admit(run.id, model) for run in runs[:count])
        self.busy[model] = busy + count
        if count < len(runs):
            self._hold(model, HoldReason.BUSY)

    def _see_to(self, wishes: Sequence[Wish]) -> None:
        """Load what fits; make room for the first that does not."""
        left = self.room
        soft = self.state.level is Level.SOFT
        blocked = False
        for wish in wishes:
            model = wish.model
            footprint = self.seen.footprints.get(model)
            if footprint is None:
                self._hold(model, HoldReason.UNKNOWN)
                continue
            need_bytes = need(self.state, footprint, model, self.limits)
            rests_until = self.state.rests.get(model, self.now)
            if need_bytes > self.seen.total_bytes - self.limits.soft_line(self.seen.total_bytes):
                self._hold(model, HoldReason.TOO_BIG)
            elif rests_until > self.now:
                self._hold(model, HoldReason.FAILED, rests_until)
            elif self.unload:
                self._hold(model, HoldReason.VERIFYING)
            elif blocked:
                self._hold(model, HoldReason.TURN)
            elif need_bytes <= left and not soft:
                left -= need_bytes
                until_s = self.now + self.limits.load_s
                sudden = footprint.sudden(need_bytes)
                self.models[model] = Held(Phase.LOADING, need_bytes, sudden, self.now, until_s)
                self.decisions.append(Load(model, need_bytes))
                self._hold(model, HoldReason.LOADING, until_s)
            else:
                blocked = self._make_room(wish, need_bytes, need_bytes - left)

    def _make_room(self, wish: Wish, need_bytes: int, short_bytes: int) -> bool:
        """Unload idle models, or drain busy ones; whether the room is kept for this model."""
        model = wish.model
        if short_bytes <= 0:
            self._hold(model, HoldReason.SOFT)
            return False
        if need_bytes > self._reach(wish.rank):
            if need_bytes > self._reach(0):
                self._hold(model, HoldReason.ROOM)
            else:
                self._hold(model, HoldReason.TIERS, wish.first_s if isfinite(wish.first_s) else None)
            return False
        overdue = self.now >= wish.since_s + self.limits.swap_s
        ready = {
            name: holds(held, name, self.seen.resident)
            for name, held in self.models.items()
            if held.phase in (Phase.LOADED, Phase.DRAINING)
            and self._gives_way(name, held, wish, overdue=overdue)
        }
        idle = {name: held_bytes for name, held_bytes in ready.items() if not self.busy.get(name)}
        if short_bytes <= sum(idle.values()):
            self.unload = unused(idle, self.state.served, short_bytes)
            self._hold(model, HoldReason.VERIFYING)
            return True
        drained = self._drained(ready.keys() - idle.keys(), short_bytes - sum(idle.values()))
        for name in drained:
            self.models[name] = self.models[name]._replace(phase=Phase.DRAINING, room_for=model)
        if drained:
            self._hold(model, HoldReason.MAKING_ROOM)
        else:
            self._hold(model, HoldReason.PUT_OFF, self._changes_s(wish))
        return bool(drained) or overdue

    def _gives_way(self, name: str, held: Held, wish: Wish, *, overdue: bool) -> bool:
        """Whether this loaded model may be unloaded for the wish, or drained where it is busy."""
        used = self.now >= held.since_s + self.limits.swap_s
        if not self.busy.get(name):
            # where nothing runs at all, waiting would only waste the node
            return wish.rank == 0 or overdue or used or not any(self.busy.values())
        highest = self._highest(name)
        return wish.rank == 0 < highest or (overdue and used and wish.rank <= highest)

    def _drained(self, busy: Iterable[str], short_bytes: int) -> list[str]:
        """Those of these models whose room would do, first what drains already; empty where all do not."""
        costs = sorted(
            (
                self.models[name].phase is not Phase.DRAINING,
                sacrifice(
                    name,
                    holds(self.models[name], name, self.seen.resident),
                    self.seen.running.get(name, ()),
                    self.now,
                ),
            )
            for name in busy
        )
        chosen: list[str] = []
        for draining_last, cost in costs:
            if draining_last and short_bytes <= 0:
                break
            chosen.append(cost.model)
            short_bytes += cost.freed
        return chosen if short_bytes <= 0 else []

    def _changes_s(self, wish: Wish) -> float | None:
        """When more may give way to this wish by itself."""
        ends = [wish.since_s, *(held.since_s for held in self.models.values() if held.phase is Phase.LOADED)]
        return min(
            (at + self.limits.swap_s for at in ends if at + self.limits.swap_s > self.now), default=None
        )

    def _reach(self, rank: int) -> int:
        """Bytes that a load for a run of this rank can get: of all models but those of higher tiers."""
        return self.room + sum(
            held.need_bytes if held.phase is Phase.LOADING else holds(held, name, self.seen.resident)
            for name, held in self.state.models.items()
            if held.phase is not Phase.UNLOADING and rank <= self._highest(name)
        )

    def _need(self, model: str) -> int:
        footprint = self.seen.footprints.get(model)
        return need(self.state, footprint, model, self.limits) if footprint else 0

    def _highest(self, model: str) -> int:
        """Rank of the highest tier that runs on this model or waits for it."""
        runs = (*self.seen.running.get(model, ()), *self.seen.waiting.get(model, ()))
        return min((RANKS[run.tier] for run in runs), default=NOBODYS)

    def _hold(self, model: str, reason: HoldReason, until_s: float | None = None) -> None:
        self.decisions.append(Hold(model, reason, until_s))
