"""Hours of three models that do not fit together, as a table: the product beside two servers on their own."""

from collections.abc import Callable

from gaelp_tasks.models.invocation import Tier
from memory.firstcome import FastPath, FirstCome
from memory.node import Manager, Node
from memory.ours import Ours
from memory.three import HOUR_S, Scene, hour
from memory.traces import Trace
from memory.waits import Waits, bound_s, promises, waits

LOADS = {
    Scene.ONE: (0.5, 0.6, 0.7),
    Scene.TWO: (0.5, 0.65, 0.8),
    Scene.SAME: (0.5, 0.6, 0.7),
    Scene.ENDLESS: (0.75, 0.85),
}
COMPARED = (Scene.ONE, Scene.TWO, Scene.SAME)  #: in the endless one who keeps the order swaps seldom
MANAGERS: dict[str, Callable[[Node], Manager]] = {
    "ours": Ours,
    "arrival": FirstCome,
    "fast path": FastPath,
}


def spent(trace: Trace, manager: Callable[[Node], Manager]) -> Waits:
    """The hour under this manager."""
    node = Node(trace)
    node.run(manager(node))
    return waits(node)


def three(seed: int, hours: int, say: Callable[..., None]) -> int:
    """Print so many hours of each kind and load; 1 where a promise is broken."""
    say(
        f"{'':11}{'loads':>6}{'finished':>12}{'after':>9}   wait p50 / p95 / longest and longest for a turn, "
        "by tier, in seconds"
    )
    broken = 0
    for scene, loads in LOADS.items():
        for load in loads:
            for number in range(seed, seed + hours):
                broken += len(one(scene, load, number, say))
    return int(broken > 0)


def one(
    scene: Scene, load: float, seed: int, say: Callable[..., None], length_s: float = HOUR_S
) -> list[str]:
    """One hour under all of them; the promises that are broken."""
    trace = hour(scene, seed, load, length_s)
    found = {name: spent(trace, manager) for name, manager in MANAGERS.items()}
    bounds = ", ".join(f"{tier} {bound_s(trace, tier):.0f} s" for tier in Tier if found["ours"].runs[tier])
    say(f"{scene}, {load:.0%} of the slots' time, seed {seed}; a turn may take: {bounds}")
    for name, its in found.items():
        tiers = "   ".join(
            f"{its.share(tier, 0.5):5.0f} /{its.share(tier, 0.95):5.0f} /{its.share(tier, 1.0):5.0f}, "
            f"{its.turns[tier]:4.0f}"
            for tier in Tier
            if its.runs[tier]
        )
        say(f"  {name:9}{its.loads:6}{f'{its.done}/{its.arrived}':>12}{its.ended_s:7.0f} s   {tiers}")
    broken = promises(trace, found["ours"], found["arrival"] if scene in COMPARED else None)
    say(*(f"  BROKEN: {promise}" for promise in broken))
    return broken
