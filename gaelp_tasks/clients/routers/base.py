"""The seam to a router: which node takes a call. It decides and keeps count; it asks no node anything."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol, runtime_checkable

__all__ = ["Ask", "Choose", "Kind", "Lease", "NodeRouter", "NodeState", "Outcome"]

Kind = Literal["chat", "embed", "load"]


class Outcome(StrEnum):
    """What became of a call on a node."""

    DONE = "done"
    LEFT = "left"  #: the caller went away; says nothing about the node
    REFUSED = "refused"  #: the request's own fault
    BUSY = "busy"  #: the node takes no work for now
    MISSING = "missing"  #: the node does not have the model
    FAILED = "failed"  #: the model failed there: an error, a hang, an answer cut off
    UNREACHABLE = "unreachable"  #: no connection, or it broke


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """What is known of a node at one moment."""

    url: str  #: as it was given, with credentials where it has any
    slots: int = 1  #: calls that it works on at once; a node with 0 is used last
    in_flight: int = 0  #: calls of ours that it has
    failed: frozenset[str] = (
        frozenset()
    )  #: models that fail there until a probe succeeds; '' is the node itself
    busy: bool = False  #: it refused work a moment ago
    models: frozenset[str] | None = None  #: what it has on disk; None: not known
    loaded: frozenset[str] = frozenset()  #: what it had in memory when it was last asked
    latency_s: Mapping[str, float] = field(default_factory=dict)  #: model -> smoothed time to its first token
    success_rate: float = 1.0  #: smoothed, 0 to 1
    turn: int = 0  #: grows with each call given out anywhere; the lowest has waited longest

    def healthy(self, model: str) -> bool:
        """Neither the node nor this model there has failed since it last answered."""
        return not self.failed & {"", model}

    def lacks(self, model: str) -> bool:
        """Known not to have it."""
        return self.models is not None and bool(model) and model not in self.models


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A call that looks for a node."""

    model: str  #: as nodes list it, with its tag; '': any
    kind: Kind = "chat"
    est_tokens: int = 0  #: of the prompt, roughly
    priority: int = 5  #: 1 to 10, 10 first
    exclude: frozenset[str] = frozenset()  #: URLs that this call has tried


#: One of these nodes, never none: they are the best of what is allowed, the longest waiting first.
Choose = Callable[[Sequence[NodeState], Ask], NodeState]


class Lease:
    """A call's place on a node, until it is reported how it went."""

    def __init__(self, node: str, settle: Callable[[Outcome, float | None, float | None], None]) -> None:
        self.node = node
        self._settle: Callable[[Outcome, float | None, float | None], None] | None = settle

    def report(
        self, outcome: Outcome, *, first_token_s: float | None = None, retry_after_s: float | None = None
    ) -> None:
        """How the call went; only the first report counts. `retry_after_s` is what a busy node asked for."""
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(outcome, first_token_s, retry_after_s)


@runtime_checkable
class NodeRouter(Protocol):
    """Chooses nodes. Called from any thread; must not block, so no I/O.

    The client that uses it does the calls, fails over, and tells it what it saw.
    """

    def nodes(self) -> tuple[str, ...]:
        """The URLs it chooses from, in the order given."""

    def set_nodes(self, urls: Iterable[str]) -> None:
        """Choose from these from now on; calls in flight on others go on. A mapping tells slots too.

        Raises SettingsError for none.
        """

    def acquire(
        self,
        model: str,
        kind: Kind = "chat",
        est_tokens: int = 0,
        priority: int = 5,
        exclude: frozenset[str] = frozenset(),
    ) -> Lease | None:
        """A node for this call; None where all are excluded, or the rest is known to lack the model."""

    def saw(self, url: str, *, models: Iterable[str], loaded: Iterable[str]) -> None:
        """The node answered: what it has on disk and in memory."""

    def mark(self, url: str, model: str, *, healthy: bool) -> None:
        """How the node (model '') or a model there answered when it was probed."""

    def snapshot(self) -> tuple[NodeState, ...]:
        """Every node, in the order of `nodes`."""
