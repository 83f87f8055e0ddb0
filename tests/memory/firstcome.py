"""Two ways in which a server serves models that do not fit together, without a controller.

Both know the true sizes, and unload nothing but what is idle.
"""

from gaelp_workers.eviction import Run
from memory.node import Node
from memory.traces import RESERVE_BYTES

NEVER_S = 3600.0  #: nothing changes on its own account


class FirstCome:
    """Strictly the oldest waiting run next, whatever its model; models are swapped where they must be."""

    def __init__(self, node: Node) -> None:
        self.jobs = node.trace.jobs
        self.next = 0

    def look(self, node: Node) -> tuple[float, bool]:
        """Start what may start; the first that may not holds up all that came after it."""
        while self.next < len(self.jobs) and self.jobs[self.next].at_s <= node.now:
            job = self.jobs[self.next]
            run = next(run for run in node.waiting[job.model] if run.id == job.id)
            if not served(node, run, job.model):
                break
            self.next += 1
        return node.now + NEVER_S, True


class FastPath:
    """Runs of loaded models never wait in the line of those that are not, as in Ollama 0.33."""

    def __init__(self, node: Node) -> None:
        del node

    def look(self, node: Node) -> tuple[float, bool]:
        """Fill loaded models, then see to the oldest run of a model that is not loaded."""
        line: list[tuple[float, Run, str]] = []
        for name, runs in node.waiting.items():
            one = node.served.get(name)
            for run in sorted(runs, key=lambda run: run.since_s):
                if one is None or not one.ready:
                    line.append((run.since_s, run, name))
                    break
                if not served(node, run, name):
                    break
        if line:
            _, run, name = min(line)
            served(node, run, name)
        return node.now + NEVER_S, True


def served(node: Node, run: Run, name: str) -> bool:
    """Start this run, or load its model, or make room for it; whether it has started."""
    one = node.served.get(name)
    if one is not None:
        if not one.ready or len(node.running[name]) >= one.model.footprint.num_parallel:
            return False
        node.start(run, name)
        return True
    coming = sum(other.model.true_bytes for other in node.served.values() if not other.ready)
    here = sum(other.bytes(node.now) for other in node.served.values() if not other.ready)
    if node.trace.models[name].true_bytes <= node.free() - RESERVE_BYTES - (coming - here):
        node.load(name)
    elif not node.dying:
        idle = [
            other.model.name
            for other in node.served.values()
            if other.ready and not node.running[other.model.name]
        ]
        if idle:
            node.unload(min(idle, key=lambda other: node.served[other].since))
    return False
