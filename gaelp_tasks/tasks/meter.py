"""What really comes from each node: tokens, when it was last heard, and how long runs take there."""

from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean

from gaelp_tasks.clients.wire import canonical

__all__ = ["Meter", "Tally"]

WINDOW_S = 5.0  #: over which tokens per second are smoothed
RECENT = 20  #: runs of a model whose mean tells how long the next one takes


class Meter:
    """What came from one node, counted by the runs that it serves."""

    __slots__ = ("_lasted", "_samples", "heard_at", "model", "tokens")

    def __init__(self) -> None:
        self.tokens = 0  #: pieces of text so far; a node sends one for each token
        self.heard_at: float | None = None  #: `tick` of its last piece or vector; None: never heard
        self.model = ""  #: that spoke last
        self._samples: deque[tuple[float, int]] = deque()
        self._lasted: dict[str, deque[float]] = {}

    def rate(self, now: float) -> float:
        """Tokens per second over the last seconds; 0.0 at the first call, which has nothing to compare with.

        Ask at each poll: what it compares with are its own earlier calls.
        """
        samples = self._samples
        samples.append((now, self.tokens))
        while len(samples) > 2 and samples[1][0] <= now - WINDOW_S:  # noqa: PLR2004  two make a difference
            samples.popleft()
        since, before = samples[0]
        return (self.tokens - before) / (now - since) if now > since else 0.0

    def lasted(self, model: str, seconds: float) -> None:
        """A run of this model had its slot for so long, without the load."""
        self._lasted.setdefault(canonical(model), deque(maxlen=RECENT)).append(max(0.0, seconds))

    def run_s(self, model: str) -> float | None:
        """How long the last runs of this model had their slots, on the mean; None before one has ended."""
        lasted = self._lasted.get(canonical(model))
        return fmean(lasted) if lasted else None


class Tally:
    """What one run has received, and from which node; feeds that node's meter."""

    __slots__ = ("__weakref__", "_meter", "_meters", "_tick", "node", "tokens")

    def __init__(self, meters: Mapping[str, Meter], tick: Callable[[], float]) -> None:
        self.node = ""  #: the node that answers; '' before it has, and where the client has none
        self.tokens = 0
        self._meters = meters
        self._meter: Meter | None = None
        self._tick = tick

    def count(self, node: str, model: str, tokens: int = 1) -> None:
        """A model on a node sent something; node '': no node did, as with a cache or an agent's own words."""
        self.tokens += tokens
        if not node:
            return
        if node != self.node:
            self.node, self._meter = node, self._meters.get(node)
        if self._meter is not None:
            self._meter.tokens += tokens
            self._meter.heard_at = self._tick()
            self._meter.model = model

    def lasted(self, model: str, seconds: float) -> None:
        """It has ended: the node that answered learns how long its runs take."""
        if self._meter is not None:
            self._meter.lasted(model, seconds)
