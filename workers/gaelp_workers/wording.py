"""Why the runs of a model wait on this node, in one sentence for people. Pure."""

from collections.abc import Mapping
from math import isfinite

from gaelp_tasks.footprints import in_words as size_in_words
from gaelp_workers.admission import need, room
from gaelp_workers.decisions import Hold, HoldReason, Snapshot, State
from gaelp_workers.ledger import Phase
from gaelp_workers.thresholds import Limits

__all__ = ["in_words"]

SENTENCES: Mapping[HoldReason, str] = {
    HoldReason.UNKNOWN: "This node does not have {model}, or does not tell how much memory it takes.",
    HoldReason.TOO_BIG: (
        "{model} does not fit this node even when nothing else is loaded: it needs {need}, and the node "
        "gives models {most}; `gaelp plan {model}` tells more."
    ),
    HoldReason.BUSY: "{slots} taken.",
    HoldReason.LOADING: "{model} is being loaded, with {need} set aside for it{there}.",
    HoldReason.FAILED: "The last load of {model} failed; it is tried again after {again_s:g} s.",
    HoldReason.UNLOADING: "{model} is being unloaded; its memory has to be free before it is loaded again.",
    HoldReason.DRAINING: (
        "{model} makes room for {room_for}: nothing new starts on it, and it is unloaded once what runs "
        "on it has ended ({runs} now)."
    ),
    HoldReason.MAKING_ROOM: (
        "{model} needs {need}, and {room} may be taken here now: what runs on {drained} ends first, and "
        "nothing new starts there."
    ),
    HoldReason.PUT_OFF: (
        "{model} needs {need}, and {room} may be taken here now: loaded models go first, but for "
        "{swap_s:g} s at the longest."
    ),
    HoldReason.TIERS: (
        "{model} needs {need}, and {room} may be taken here now: runs of higher tiers keep what could make "
        "room{most_wait}."
    ),
    HoldReason.TURN: (
        "Another model gets its room before {model}: it waits for longer, or is of a higher tier."
    ),
    HoldReason.ROOM: (
        "{model} needs {need}, and {room} may be taken here now: all that may be unloaded for it is not "
        "enough."
    ),
    HoldReason.SOFT: (
        "Memory is tight, {free} of {total} are free: nothing is loaded until there is more, and {model} "
        "is not in memory."
    ),
    HoldReason.HARD: (
        "Memory is short, {free} of {total} are free and {reserve} are kept free: nothing starts until "
        "there is more."
    ),
    HoldReason.CRITICAL: (
        "Memory is all but gone, {free} of {total} are free: everything was unloaded, and nothing starts "
        "until there is more."
    ),
    HoldReason.VERIFYING: (
        "A model was unloaded: nothing starts until its memory is seen to be free, {verify_s:g} s at the "
        "longest."
    ),
}


def in_words(hold: Hold, seen: Snapshot, state: State, limits: Limits) -> str:
    """The sentence; `state` is the one that came with the hold."""
    model = hold.model
    footprint, held = seen.footprints.get(model), state.models.get(model)
    slots = footprint.num_parallel if footprint else 0
    needed = need(state, footprint, model, limits) if footprint else 0
    if held is not None and held.phase is Phase.LOADING:
        needed = held.need_bytes
    there = seen.resident.get(model, 0)
    drained = [name for name, other in state.models.items() if other.room_for == model]
    return SENTENCES[hold.reason].format(
        model=model,
        need=size_in_words(needed),
        most=size_in_words(max(0, seen.total_bytes - limits.soft_line(seen.total_bytes))),
        slots=f"The only slot of {model} is" if slots == 1 else f"All {slots} slots of {model} are",
        # nothing tells what it holds so far on some nodes
        there=f"; {size_in_words(there)} are in memory" if there else "",
        again_s=limits.load_again_s,
        room_for=held.room_for if held is not None else "another model",
        runs=len(seen.running.get(model, ())),
        room=size_in_words(max(0, room(state, seen, limits))),
        drained=" and ".join(drained) or "other models",
        swap_s=limits.swap_s,
        most_wait=f", but for {limits.most_wait_s:g} s at the longest"
        if isfinite(limits.most_wait_s)
        else "",
        free=size_in_words(seen.free_bytes),
        total=size_in_words(seen.total_bytes),
        reserve=size_in_words(limits.reserve_bytes),
        verify_s=limits.verify_s,
    )
