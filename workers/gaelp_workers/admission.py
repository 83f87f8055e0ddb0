"""Who may start, which model to load, and what makes room for it. Pure."""

from collections.abc import Sequence

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
from gaelp_workers.eviction import NOBODYS, RANKS, sacrifice, victims
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


class Round:
    """One look over all that waits: `run` once. It changes nothing but itself."""

    def __init__(self, state: State, seen: Snapshot, now: float, limits: Limits) -> None:
        self.state, self.seen, self.now, self.limits = state, seen, now, limits
        self.models = dict(state.models)
        self.busy = {model: len(runs) for model, runs in seen.running.items()}
        self.decisions: list[Decision] = []
        self.unload: list[str] = []  #: idle models whose room is needed

    def run(self) -> None:
        """Fill free slots first, then see to the models that are not loaded, the most urgent one first."""
        self._stop_needless_drains()
        wanting: list[tuple[int, float, str]] = []
        for model, runs in self.seen.waiting.items():
            if not runs:
                continue
            held = self.models.get(model)
            if held is not None and held.phase is not Phase.LOADED:
                self._hold(model, WAITS[held.phase], held.until_s if held.phase is Phase.LOADING else None)
            elif model in self.seen.loaded:
                self._admit(model)
            else:
                wanting.append((RANKS[runs[0].tier], runs[0].since_s, model))
        if wanting:
            self._see_to(sorted(wanting))

    def _stop_needless_drains(self) -> None:
        """A model drained for one that is loaded by now, or that nobody waits for any more, goes on."""
        for model, held in self.state.models.items():
            if held.phase is Phase.DRAINING and (
                held.room_for in self.models or not self.seen.waiting.get(held.room_for)
            ):
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

    def _see_to(self, wanting: Sequence[tuple[int, float, str]]) -> None:
        """Load what fits; make room for the first that does not."""
        left = room(self.state, self.seen, self.limits)
        soft = self.state.level is Level.SOFT
        blocked = False
        for rank, since_s, model in wanting:
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
                blocked = self._make_room(model, rank, since_s, need_bytes - left)

    def _make_room(self, model: str, rank: int, since_s: float, short_bytes: int) -> bool:
        """Unload idle models, or drain busy ones; whether the room is kept for this model."""
        if short_bytes <= 0:
            self._hold(model, HoldReason.SOFT)
            return False
        idle = {
            name: holds(held, name, self.seen.resident)
            for name, held in self.models.items()
            if held.phase in (Phase.LOADED, Phase.DRAINING) and not self.busy.get(name)
        }
        short_bytes -= sum(idle.values())
        if short_bytes <= 0:
            self.unload = victims(idle, {}, short_bytes + sum(idle.values()), self.now)
            self._hold(model, HoldReason.VERIFYING)
            return True
        overdue_s = since_s + self.limits.swap_s
        overdue = self.now >= overdue_s
        drained = self._drainable(model, rank, overdue, short_bytes)
        if drained:
            for name in drained:
                self.models[name] = self.models[name]._replace(
                    phase=Phase.DRAINING, since_s=self.now, room_for=model
                )
            self._hold(model, HoldReason.MAKING_ROOM)
        elif overdue:
            self._hold(model, HoldReason.ROOM)
        else:
            self._hold(model, HoldReason.PUT_OFF, overdue_s)
        return bool(drained) or overdue

    def _drainable(self, model: str, rank: int, overdue: bool, short_bytes: int) -> list[str]:
        """Busy models whose room would do, those drained for it already first; empty where none would."""
        chosen: list[str] = []
        costs = []
        for name, held in self.models.items():
            if not self.busy.get(name) or held.phase not in (Phase.LOADED, Phase.DRAINING):
                continue
            held_bytes = holds(held, name, self.seen.resident)
            if held.phase is Phase.DRAINING:
                if held.room_for == model:
                    chosen.append(name)
                    short_bytes -= held_bytes
            elif rank < self._highest(name) or (overdue and self.now >= held.since_s + self.limits.swap_s):
                costs.append(sacrifice(name, held_bytes, self.seen.running.get(name, ()), self.now))
        for cost in sorted(costs):
            if short_bytes <= 0:
                break
            chosen.append(cost.model)
            short_bytes += cost.freed
        return chosen if short_bytes <= 0 else []

    def _highest(self, model: str) -> int:
        """Rank of the highest tier that runs on this model or waits for it."""
        ranks = [RANKS[run.tier] for run in self.seen.running.get(model, ())]
        ranks += [RANKS[run.tier] for run in self.seen.waiting.get(model, ())[:1]]
        return min(ranks, default=NOBODYS)

    def _hold(self, model: str, reason: HoldReason, until_s: float | None = None) -> None:
        self.decisions.append(Hold(model, reason, until_s))
