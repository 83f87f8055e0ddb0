"""What really comes from each node: tokens, and when it was last heard."""

from collections import deque
from collections.abc import Callable, Mapping

__all__ = ["Meter", "Tally"]

WINDOW_S = 5.0  #: over which tokens per second are smoothed


class Meter:
    """What came from one node, counted by the runs that it serves."""

    __slots__ = ("_samples", "heard_at", "model", "tokens")

    def __init__(self) -> None:
        self.tokens = 0  #: pieces of text so far; a node sends one for each token
        self.heard_at: float | None = None  #: `tick` of its last piece or vector; None: never heard
        self.model = ""  #: that spoke last
        self._samples: deque[tuple[float, int]] = deque()

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
