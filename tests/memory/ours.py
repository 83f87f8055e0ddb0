"""The controller of the product at work on a simulated node."""

from gaelp_workers import controller
from gaelp_workers.decisions import Admit, Hold, Load, NextPoll, Snapshot, State, Unload, UnloadReason
from gaelp_workers.eviction import NOBODYS, RANKS
from gaelp_workers.thresholds import Level, Limits
from memory.node import Node


class Ours:
    """Carries out what the controller decides."""

    def __init__(self, node: Node, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.footprints = {name: model.footprint for name, model in node.trace.models.items()}
        self.state = controller.start(int(node.free()), 0.0)

    def look(self, node: Node) -> tuple[float, bool]:
        """One step of the controller."""
        seen, before = self.snapshot(node), self.state
        node.failed.clear()
        self.state, decisions = controller.step(before, seen, node.now, self.limits)
        again_s, changes_at = self.limits.poll_s, float("inf")
        acted = False
        lost: list[int] = []  #: ranks of the highest tier of each model that was evicted
        for decision in decisions:
            match decision:
                case Hold(_, _, until_s):
                    if until_s is not None:
                        changes_at = min(changes_at, until_s)
                    continue
                case NextPoll(after_s):
                    again_s = after_s
                    continue
                case Load(name, _):
                    node.load(name)
                case Unload(name, reason, cut):
                    if reason is UnloadReason.EVICTION:
                        node.tally.evictions += 1
                        lost.append(highest(node, name))
                    if {run.id for run in node.unload(name)} != set(cut):
                        node.tally.broken.append(f"unloading {name} cuts other runs than it says")
                case Admit(run_id, name):
                    run = next(run for run in node.waiting[name] if run.id == run_id)
                    node.start(run, name)
            acted = True
            node.tell(str(decision))
        self.judge_victims(node, lost)
        calm = not acted and settled(before, self.state) and changes_at > node.now + again_s
        return node.now + again_s, calm

    def judge_victims(self, node: Node, lost: list[int]) -> None:
        """Nobody of a higher tier is unloaded while unloading another one would have been less of a loss."""
        spared = [highest(node, name) for name in self.state.models if name in node.served]
        if lost and spared and max(spared) > min(lost):
            node.tally.broken.append("a higher tier is evicted while a lower one is spared")

    def snapshot(self, node: Node) -> Snapshot:
        """What a worker can know of the node."""
        served = node.served.items()
        return Snapshot(
            total_bytes=node.trace.total_bytes,
            free_bytes=max(0, int(node.free())),
            resident={
                name: int(one.bytes(node.now)) for name, one in served if one.ready or node.trace.sees_loads
            },
            loaded=frozenset(name for name, one in served if one.ready),
            failed=frozenset(node.failed),
            running={name: tuple(runs) for name, runs in node.running.items()},
            waiting={name: tuple(runs) for name, runs in node.waiting.items()},
            footprints=self.footprints,
        )


def highest(node: Node, name: str) -> int:
    """Rank of the highest tier that runs on a model."""
    return min((RANKS[run.tier] for run in node.running.get(name, ())), default=NOBODYS)


def settled(before: State, after: State) -> bool:
    """Whether another step would change nothing but the time."""
    return (
        after.back is None
        and after.level is before.level
        and after.level < Level.HARD
        and after.believed_bytes == before.believed_bytes
        and after.models == before.models
        and after.trend.others_bytes_s == before.trend.others_bytes_s == 0.0
    )
