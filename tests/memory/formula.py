"""The formula of the design at work on the same node: per model, every second, at least one slot each."""

from gaelp_workers.eviction import Run
from memory.node import Node
from memory.traces import RESERVE_BYTES

POLL_S = 1.0
SAFETY_FACTOR = 1.5
SERVER_SHARE = 0.8  #: of free memory: the model server loads no more at once than this, by its own estimate


class Formula:
    """slots = max(1, floor((free - reserve) / (memory * safety factor))); the server does the loading."""

    def __init__(self, node: Node) -> None:
        self.slots = dict.fromkeys(node.trace.models, 0)
        self.inside: dict[str, list[Run]] = {name: [] for name in node.trace.models}
        self.polls_at = 0.0

    def look(self, node: Node) -> tuple[float, bool]:
        """Poll if it is time, launch what there are slots for; the server sees to the rest."""
        if node.now >= self.polls_at:
            self.polls_at = node.now + POLL_S
            available = max(0.0, node.free() - RESERVE_BYTES)
            for name, model in node.trace.models.items():
                per_run = model.footprint.shared_bytes + model.footprint.per_slot_bytes
                self.slots[name] = max(1, int(available / (per_run * SAFETY_FACTOR)))
        node.failed.clear()
        for name, runs in node.waiting.items():
            launched = {run.id for run in self.inside[name]}
            inside = [run for run in runs if run.id in launched]
            room = self.slots[name] - len(node.running[name]) - len(inside)
            inside += [run for run in runs if run.id not in launched][: max(0, room)]
            self.inside[name] = inside
        self.serve(node)
        return self.polls_at, True

    def serve(self, node: Node) -> None:
        """The model server: free slots of loaded models first, then one load after the other as they came."""
        for name, inside in self.inside.items():
            one = node.served.get(name)
            while inside and one and one.ready and self.free(node, name):
                node.start(inside.pop(0), name)
        heads = [(inside[0].since_s, name) for name, inside in self.inside.items() if inside]
        for _, name in sorted(heads):
            if name not in node.served and not self.load(node, name):
                return  # the line stands still until there is room

    def free(self, node: Node, name: str) -> int:
        """Slots that the server has on this model."""
        return node.trace.models[name].footprint.num_parallel - len(node.running[name])

    def load(self, node: Node, name: str) -> bool:
        """As the server decides: by its estimate, after unloading what is idle if it must; False to wait."""
        if any(one.model.name == name for one in node.dying):
            return False
        coming = sum(
            max(0.0, one.model.footprint.total_bytes - one.bytes(node.now))
            for one in node.served.values()
            if not one.ready
        )
        wanted = node.trace.models[name].footprint.total_bytes
        if node.served and wanted > SERVER_SHARE * (node.free() - coming):
            idle = [
                other
                for other, one in node.served.items()
                if one.ready and other in node.trace.models and not node.running[other]
            ]
            if idle:
                node.unload(min(idle, key=lambda other: node.served[other].since))
            return False
        node.load(name)
        return True
