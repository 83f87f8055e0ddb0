"""The memory controller of one node: what it sees goes in, what to do comes out. Pure.

`step` is called at every poll and whenever a run arrives or ends, a load ends or a model has gone. Whoever
calls it carries the decisions out; what came of them shows in the next snapshot. See docs/controller.md.
"""

from collections.abc import Mapping, Sequence

from gaelp_workers import ledger, thresholds
from gaelp_workers.admission import Round, need, room
from gaelp_workers.decisions import (
    Admit,
    Alert,
    Decision,
    Hold,
    HoldReason,
    NextPoll,
    Snapshot,
    State,
    Unload,
    UnloadReason,
)
from gaelp_workers.eviction import victims
from gaelp_workers.ledger import Held, Phase, Return, holds
from gaelp_workers.thresholds import Level, Limits, Trend

__all__ = ["capacity", "free_slots", "start", "step"]


TRIES = 5  #: to unload a model, before it counts as others'


def start(free_bytes: int, now: float, measured: Mapping[str, int] | None = None) -> State:
    """A controller that has loaded nothing yet; `measured` is what an earlier one has learned."""
    trend = Trend(now, free_bytes, 0)
    return State({}, dict(measured or {}), {}, Level.EASY, free_bytes, trend, None, now)


def step(state: State, seen: Snapshot, now: float, limits: Limits) -> tuple[State, tuple[Decision, ...]]:
    """The next state, and what to do now."""
    state = _weighed(_noted(state, seen, now, limits), seen, now, limits)
    state, decisions = _reminded(state, seen, now, limits)
    if state.level >= Level.HARD:
        state, unloads = _made_safe(state, seen, now, limits)
        reason = HoldReason.CRITICAL if state.level is Level.CRITICAL else HoldReason.HARD
        decisions += unloads + _all_hold(seen, reason, None)
    elif state.back is not None:
        decisions += _all_hold(seen, HoldReason.VERIFYING, state.back.until_s)
    else:
        look = Round(state, seen, now, limits)
        look.run()
        served = {decision.model: now for decision in look.decisions if isinstance(decision, Admit)}
        state = state._replace(models=look.models, served={**state.served, **served})
        state, unloads = _unloaded(state, seen, look.unload, UnloadReason.ROOM, now, limits)
        decisions += look.decisions + unloads
    free_bytes = (
        seen.free_bytes if state.models else seen.total_bytes
    )  # where nothing is ours, nothing is urgent
    next_poll = NextPoll(thresholds.poll_s(free_bytes, seen.total_bytes, limits))
    return state, (*decisions, next_poll)


def capacity(state: State, seen: Snapshot, limits: Limits) -> dict[str, int]:
    """How many runs of each model of this node may be here at once, at work or waiting for its load.

    0 where nothing may start on it, and where it could be loaded only once busy models were drained: what
    waits for such a model has to be in `seen.waiting` though nobody may claim it, or none is ever drained.
    """
    idle = sum(
        holds(held, name, seen.resident)
        for name, held in state.models.items()
        if held.phase in (Phase.LOADED, Phase.DRAINING) and not seen.running.get(name)
    )
    may_take = room(state, seen, limits) + idle
    return {
        model: footprint.num_parallel if _is_open(state, seen, model, limits, may_take) else 0
        for model, footprint in seen.footprints.items()
    }


def free_slots(state: State, seen: Snapshot, model: str, limits: Limits) -> int:
    """How many more runs of this model may start, or wait for its load, by what is known now."""
    slots = capacity(state, seen, limits).get(model, 0)
    return max(0, slots - len(seen.running.get(model, ())))


def _is_open(state: State, seen: Snapshot, model: str, limits: Limits, may_take: int) -> bool:
    """Whether runs of this model may come; loads may take so many bytes, with idle models unloaded."""
    if state.level >= Level.HARD or state.back is not None:
        return False
    held = state.models.get(model)
    if held is not None:
        return held.phase in (Phase.LOADED, Phase.LOADING)
    if model in seen.loaded:
        return True
    if state.level is not Level.EASY or state.rests.get(model, state.at_s) > state.at_s:
        return False
    return need(state, seen.footprints[model], model, limits) <= may_take


def _all_hold(seen: Snapshot, reason: HoldReason, until_s: float | None) -> list[Decision]:
    return [Hold(model, reason, until_s) for model, runs in seen.waiting.items() if runs]


def _reminded(state: State, seen: Snapshot, now: float, limits: Limits) -> tuple[State, list[Decision]]:
    """Give up loads that do not end; unload once more what was unloaded and is still there."""
    decisions: list[Decision] = []
    for model, held in state.models.items():
        if _is_kept_by_others(model, held, state, seen, now, limits):
            state = state._replace(models={name: one for name, one in state.models.items() if name != model})
        elif held.phase is Phase.UNLOADING and now >= held.until_s:
            again = held._replace(until_s=now + limits.verify_s)
            state = state._replace(models={**state.models, model: again})
            runs = seen.running.get(model, ())
            decisions.append(Unload(model, UnloadReason.LATE, tuple(run.id for run in runs)))
        elif held.phase is Phase.LOADING and now >= held.until_s:
            state, unloads = _unloaded(state, seen, [model], UnloadReason.LATE, now, limits)
            state = state._replace(rests={**state.rests, model: now + limits.load_again_s})
            waited_s = f"{held.until_s - held.since_s:g} s"
            decisions += [
                *unloads,
                Alert(f"Model {model} was not loaded within {waited_s}: the load is given up."),
            ]
    return state, decisions


def _is_kept_by_others(
    model: str, held: Held, state: State, seen: Snapshot, now: float, limits: Limits
) -> bool:
    """Whether an unloaded model is still there after several tries: others keep it, so it is theirs."""
    tried_s = now - held.since_s
    return (
        held.phase is Phase.UNLOADING
        and state.level is Level.EASY
        and model in seen.loaded
        and tried_s > TRIES * limits.verify_s
    )


def _noted(state: State, seen: Snapshot, now: float, limits: Limits) -> State:
    """What has happened to models of ours since the last step, and what was learned from it."""
    models, measured, rests = dict(state.models), state.measured, state.rests
    for model, held in state.models.items():
        listed = model in seen.resident
        if held.phase is Phase.UNLOADING:
            if not listed:
                del models[model]
        elif held.phase is Phase.LOADING:
            if model in seen.failed:
                del models[model]
                rests = {**rests, model: now + limits.load_again_s}
            elif model in seen.loaded:
                models[model] = held._replace(phase=Phase.LOADED, since_s=now)
        elif model not in seen.loaded:
            del models[model]  # it died, or somebody else has unloaded it
        if model in models and models[model].phase in (Phase.LOADED, Phase.DRAINING) and listed:
            taken = seen.resident[model]
            # a fresh load tells what it takes; later it only grows: prompt caches
            if taken and (held.phase is Phase.LOADING or taken > measured.get(model, 0)):
                measured = {**measured, model: taken}
    return state._replace(models=models, measured=measured, rests=rests, served=_served(state, seen))


def _served(state: State, seen: Snapshot) -> Mapping[str, float]:
    """When each model had its last run; who lets runs in may be quicker than these steps."""
    began = {model: max(run.since_s for run in runs) for model, runs in seen.running.items() if runs}
    return {**state.served, **{model: max(at, state.served.get(model, at)) for model, at in began.items()}}


def _weighed(state: State, seen: Snapshot, now: float, limits: Limits) -> State:
    """How tight memory is now."""
    free_bytes, back = seen.free_bytes, state.back
    believed = thresholds.believed(state.believed_bytes, free_bytes, now - state.at_s, limits.smooth_s)
    if back is not None:
        back = ledger.watched(back, free_bytes, now)
        unloading = any(held.phase is Phase.UNLOADING for held in state.models.values())
        if now >= back.until_s or (not unloading and ledger.was_seen(back, free_bytes)):
            back = None
            if state.level < Level.HARD:
                believed = free_bytes  # it rose because we made it rise
    unseen = sum(
        held.need_bytes - held.sudden_bytes
        for model, held in state.models.items()
        if held.phase is Phase.LOADING and model not in seen.resident
    )
    ours = sum(seen.resident.get(model, 0) for model in state.models)
    sudden = sum(
        held.sudden_bytes
        for model, held in state.models.items()
        if held.phase in (Phase.LOADING, Phase.LOADED) and model not in seen.resident
    )
    trend = thresholds.felt(state.trend, now, free_bytes, ours, unseen, sudden)
    state = state._replace(believed_bytes=believed, back=back, trend=trend, at_s=now)
    foreseen = _foreseen(state, seen, now, limits)
    level = thresholds.level(state.level, free_bytes, believed, foreseen, seen.total_bytes, limits)
    return state._replace(level=level)


def _foreseen(state: State, seen: Snapshot, now: float, limits: Limits) -> int:
    return thresholds.foreseen(
        seen.free_bytes,
        state.trend,
        ledger.still_to_come(state.models, seen.resident),
        ledger.coming_back(state.back, seen.free_bytes, now, limits.react_s),
        limits.react_s,
    )


def _made_safe(state: State, seen: Snapshot, now: float, limits: Limits) -> tuple[State, list[Decision]]:
    """Unload until there is relief; everything where memory is all but gone."""
    ours = {
        # stopping a load also stops what is still to come of it
        model: held.need_bytes if held.phase is Phase.LOADING else holds(held, model, seen.resident)
        for model, held in state.models.items()
        if held.phase is not Phase.UNLOADING
    }
    if state.level is Level.CRITICAL:
        chosen, reason = list(ours), UnloadReason.CRITICAL
    else:
        short = limits.reserve_bytes + limits.relief(seen.total_bytes)
        short -= _foreseen(state, seen, now, limits)
        chosen, reason = victims(ours, seen.running, short, now), UnloadReason.EVICTION
    state, unloads = _unloaded(state, seen, chosen, reason, now, limits)
    decisions: list[Decision] = [*unloads]
    if unloads and reason is UnloadReason.CRITICAL:
        left = f"{seen.free_bytes:,} of {seen.total_bytes:,} bytes are free"
        decisions.append(
            Alert(
                f"Memory of this node is all but gone ({left}): every model is unloaded and its runs are "
                "given back. Find out what else takes memory there."
            )
        )
    return state, decisions


def _unloaded(
    state: State, seen: Snapshot, chosen: Sequence[str], reason: UnloadReason, now: float, limits: Limits
) -> tuple[State, list[Decision]]:
    """These models go; nothing is admitted until their memory was seen to come back."""
    if not chosen:
        return state, []
    models, until_s = dict(state.models), now + limits.verify_s
    total = 0
    for model in chosen:
        held_bytes = holds(models[model], model, seen.resident)
        total += held_bytes
        models[model] = Held(Phase.UNLOADING, held_bytes, 0, now, until_s)
    free_bytes, before = seen.free_bytes, state.back or Return(0, seen.free_bytes, 0, now, until_s)
    back = Return(before.total_bytes + total, before.low_bytes, free_bytes, now, until_s)
    unloads: list[Decision] = [
        Unload(model, reason, tuple(run.id for run in seen.running.get(model, ()))) for model in chosen
    ]
    return state._replace(models=models, back=back), unloads
