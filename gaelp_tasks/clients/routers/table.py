"""What every router of ours knows: nodes, their health and load, and who may be chosen at all."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from gaelp_tasks.clients.address import without_credentials
from gaelp_tasks.clients.routers.base import Ask, Choose, Kind, Lease, NodeState, Outcome
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.errors import SettingsError

__all__ = ["NodeTable", "allowed"]

BUSY_S = 1.0  #: a node that refused work and named no time is passed over this long
MAX_BUSY_S = 60.0
SMOOTHING = 0.2  #: weight of the newest figure
FRESH_S = 60.0  #: an older latency is forgotten, so that a node once slow is tried again


def allowed(nodes: Sequence[NodeState], ask: Ask) -> list[NodeState]:
    """The nodes among which a router may choose: all those of the best class that is not empty.

    Never one that is excluded. One that is known to lack the model only for the first try, whose answer then
    says so. Better are, in this order: healthy ones; ones that are not busy; ones with a free slot.
    """
    left = [node for node in nodes if node.url not in ask.exclude]
    having = [node for node in left if not node.lacks(ask.model)]
    left = having if having or ask.exclude else left
    classes = [(not node.healthy(ask.model), node.busy, node.in_flight >= node.slots) for node in left]
    best = min(classes, default=None)
    return [node for node, rank in zip(left, classes, strict=True) if rank == best]


@dataclass(slots=True)
class _Node:
    url: str
    slots: int
    in_flight: int = 0
    failed: set[str] = field(default_factory=set)
    busy_until: float = 0.0
    models: frozenset[str] | None = None
    loaded: frozenset[str] = frozenset()
    latency: dict[str, tuple[float, float]] = field(default_factory=dict)  # model -> smoothed s, when
    success_rate: float = 1.0
    turn: int = 0

    def state(self, now: float) -> NodeState:
        return NodeState(
            url=self.url,
            slots=self.slots,
            in_flight=self.in_flight,
            failed=frozenset(self.failed),
            busy=now < self.busy_until,
            models=self.models,
            loaded=self.loaded,
            latency_s={name: value for name, (value, at) in self.latency.items() if now - at < FRESH_S},
            success_rate=self.success_rate,
            turn=self.turn,
        )

    def heal(self, *models: str) -> None:
        """They answered; with nothing left that fails, what failed before no longer counts."""
        if self.failed:
            self.failed.difference_update(models)
            if not self.failed:
                self.success_rate = 1.0

    def settle(self, model: str, outcome: Outcome, first_token_s: float | None, now: float) -> None:
        if outcome in {Outcome.DONE, Outcome.FAILED, Outcome.UNREACHABLE}:
            self.success_rate += SMOOTHING * ((outcome is Outcome.DONE) - self.success_rate)
        match outcome:
            case Outcome.DONE:
                self.heal("", model)
                self.busy_until = 0.0
                self.loaded |= {model}
                if first_token_s is not None:
                    before, _ = self.latency.get(model, (first_token_s, now))
                    self.latency[model] = (before + SMOOTHING * (first_token_s - before), now)
            case Outcome.FAILED:
                self.failed.add(model)
            case Outcome.UNREACHABLE:  # a connection breaks too when a model takes its server down
                self.failed |= {"", model}
            case Outcome.MISSING if self.models is not None:
                self.models -= {model}


class NodeTable:
    """A NodeRouter but for its taste: `choose` picks one of the nodes that are allowed.

    `slots` is how many calls a node works on at once (OLLAMA_NUM_PARALLEL); a mapping of URLs to slots, here
    or in `set_nodes`, tells it for each. Where all are full, a call queues at the node itself. Raises
    SettingsError where no node is named, or one by what is no address.
    """

    def __init__(
        self,
        urls: Iterable[str],
        choose: Choose,
        *,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._choose = choose
        self._slots = slots
        self._clock = clock
        self._lock = threading.Lock()  # held over no I/O
        self._turn = 0
        self._nodes: dict[str, _Node] = {}
        self.set_nodes(urls)

    def nodes(self) -> tuple[str, ...]:
        """The URLs it chooses from."""
        return tuple(self._nodes)

    def set_nodes(self, urls: Iterable[str]) -> None:
        """Choose from these from now on; what is known of those that stay is kept."""
        told = urls if isinstance(urls, Mapping) else {}
        wanted = {url.rstrip("/"): told.get(url) for url in ([urls] if isinstance(urls, str) else urls)}
        if not wanted:
            raise SettingsError(
                "Name at least one Ollama server, as in http://host:11434: none is looked for."
            )
        for url in wanted:
            without_credentials(url)
        with self._lock:
            self._nodes = {url: self._nodes.get(url) or _Node(url, self._slots) for url in wanted}
            for url, slots in wanted.items():
                if slots is not None:
                    self._nodes[url].slots = slots

    def add(self, url: str) -> None:
        """Choose from this node too."""
        self.set_nodes([*self._nodes, url])

    def remove(self, url: str) -> None:
        """Give it no more calls; those in flight go on. Raises SettingsError for the last one."""
        self.set_nodes([one for one in self._nodes if one != url.rstrip("/")])

    def acquire(
        self,
        model: str,
        kind: Kind = "chat",
        est_tokens: int = 0,
        priority: int = 5,
        exclude: frozenset[str] = frozenset(),
    ) -> Lease | None:
        """A node for this call; None where none is allowed."""
        name = canonical(model) if model else ""
        ask = Ask(model=name, kind=kind, est_tokens=est_tokens, priority=priority, exclude=exclude)
        with self._lock:
            best = allowed(self._states(), ask)
            if not best:
                return None
            chosen = self._choose(sorted(best, key=lambda node: node.turn), ask)
            node = self._nodes[chosen.url]
            node.in_flight += 1
            self._turn += 1
            node.turn = self._turn
        return Lease(node.url, partial(self._settle, node, name))

    def saw(self, url: str, *, models: Iterable[str], loaded: Iterable[str]) -> None:
        """The node answered: what it has on disk and in memory."""
        with self._lock:
            if node := self._nodes.get(url):
                node.models = frozenset(map(canonical, models))
                node.loaded = frozenset(map(canonical, loaded))
                node.heal("")

    def mark(self, url: str, model: str, *, healthy: bool) -> None:
        """How the node (model '') or a model there answered when it was probed."""
        with self._lock:
            if node := self._nodes.get(url):
                (node.heal if healthy else node.failed.add)(canonical(model) if model else "")

    def snapshot(self) -> tuple[NodeState, ...]:
        """Every node, in the order of `nodes`."""
        with self._lock:
            return tuple(self._states())

    def _states(self) -> list[NodeState]:
        now = self._clock()
        return [node.state(now) for node in self._nodes.values()]

    def _settle(
        self,
        node: _Node,
        model: str,
        outcome: Outcome,
        first_token_s: float | None,
        retry_after_s: float | None,
    ) -> None:
        with self._lock:
            now = self._clock()
            node.in_flight -= 1
            node.settle(model, outcome, first_token_s, now)
            if outcome is Outcome.BUSY:
                node.busy_until = now + min(BUSY_S if retry_after_s is None else retry_after_s, MAX_BUSY_S)
