"""What the exporter tells: the cluster as a survey finds it, looked at when somebody asks."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import NamedTuple

from gaelp_tasks import counts
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.metrics.series import Names, Sample
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.queues import ANY
from gaelp_tasks.survey import Figures
from gaelp_tasks.waiting import busy_slots

__all__ = ["Latest", "Seen", "samples"]

FRESH_S = 1.0  #: a look serves everybody who asks within this
WAIT_S = 3.0  #: for a look; then what is known is told
KEPT_S = 60.0  #: what was seen last is told for so long while Redis does not answer; then nothing is


class Seen(NamedTuple):
    """What is known of the cluster."""

    up: bool  #: Redis has answered the last look
    figures: Figures | None  #: None: nothing is known
    age_s: float  #: of the figures


class _Known(NamedTuple):
    figures: Figures
    at_s: float  #: when the look for them began


class Latest:
    """The last figures: at most a second old while Redis answers, and nobody waits long where it does not.

    `take` is called on a thread of its own, once at a time however many ask.
    """

    def __init__(
        self, take: Callable[[], Figures], tick: Callable[[], float] = monotonic, wait_s: float = WAIT_S
    ) -> None:
        self._take = take
        self._tick = tick
        self._wait_s = wait_s
        self._thread = ThreadPoolExecutor(1, "gaelp-look")
        self._lock = threading.Lock()
        self._looking: Future[None] | None = None
        self._ended_at_s = float("-inf")  #: the last look, whatever came of it
        self._known: _Known | None = None
        self._up = False

    def __call__(self) -> Seen:
        """What is known now."""
        with self._lock:
            under_way = self._looking is not None and not self._looking.done()
            if not under_way and self._tick() - self._ended_at_s >= FRESH_S:
                self._looking = self._thread.submit(self._look)
            looking = self._looking
        answered = True
        try:
            if looking is not None:
                looking.result(self._wait_s)
        except TimeoutError:
            answered = False
        known, up = self._known, self._up and answered
        age_s = self._tick() - known.at_s if known else 0.0
        if known is None or age_s > KEPT_S:
            return Seen(up, None, 0.0)
        return Seen(up, known.figures, age_s)

    def _look(self) -> None:
        at_s = self._tick()
        try:
            self._known = _Known(self._take(), at_s)
            self._up = True
        except BrokerUnavailable:
            self._up = False
        finally:
            self._ended_at_s = self._tick()


def samples(seen: Seen, models: Names) -> Iterator[Sample]:
    """The figures of the exporter's page. What is not known is left out."""
    yield Sample("gaelp_redis_up", (), float(seen.up))
    found = seen.figures
    if found is None:
        return
    yield Sample("gaelp_look_age_seconds", (), seen.age_s)
    yield from _loads(found, models)
    yield from _nodes(found.nodes, models)
    for name in ("held", "parked", "suspects"):
        yield Sample(f"gaelp_{name}", (), getattr(found, name))
    yield Sample("gaelp_dead_letters", (), found.dead)
    for reason, what in (("memory", counts.EVICTED), ("preemption", counts.PREEMPTED)):
        yield Sample("gaelp_evictions_total", (reason,), found.counts.get(what, 0))
    yield Sample("gaelp_reaped_total", (), found.counts.get(counts.REAPED, 0))
    yield Sample("gaelp_fenced_total", (), found.counts.get(counts.FENCED, 0))
    yield Sample("gaelp_beat_leads", (), found.beat_leads)
    yield Sample("gaelp_beat_terms_total", (), found.beat_terms)
    if found.schedules_age_s is not None:
        yield Sample("gaelp_schedules_age_seconds", (), found.schedules_age_s)
    yield Sample("gaelp_scheduled_runs_total", (), found.counts.get(counts.SCHEDULED, 0))
    yield Sample("gaelp_scheduled_late_seconds_total", (), found.counts.get(counts.LATE_MS, 0) / 1000)
    yield Sample("gaelp_history_waiting", (), found.history)


def _loads(found: Figures, models: Names) -> Iterator[Sample]:
    queued: Counter[tuple[str, str]] = Counter()
    running: Counter[tuple[str, str]] = Counter()
    oldest: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (tier, model), load in found.loads.items():
        place = tier, models.of(model)
        queued[place] += load.queued
        running[place] += load.running
        oldest[place] = max(oldest[place], load.oldest_s)
    for place, depth in queued.items():
        yield Sample("gaelp_queue_depth", place, depth)
        yield Sample("gaelp_queue_oldest_seconds", place, oldest[place])
        yield Sample("gaelp_running", place, running[place])


def _nodes(nodes: Iterable[NodeSnapshot], models: Names) -> Iterator[Sample]:
    """By node: of what several workers announce of one, slots add up, and the worst of the rest counts."""
    told: defaultdict[str, list[NodeSnapshot]] = defaultdict(list)
    for node in nodes:
        told[node.url].append(node)
    slots: Counter[tuple[str, str, str]] = Counter()
    total = free = 0
    for url, those in told.items():
        yield Sample("gaelp_node_healthy", (url,), all(node.healthy for node in those))
        yield Sample("gaelp_node_open", (url,), any(not node.closed for node in those))
        yield Sample("gaelp_node_tokens_per_second", (url,), sum(node.tokens_per_s for node in those))
        for node in those:
            slots.update(_slots(node, models))
        if known := [node.memory for node in those if node.memory.total_bytes]:
            memory = min(known, key=lambda one: one.free_bytes)
            total, free = total + memory.total_bytes, free + memory.free_bytes
            yield Sample("gaelp_memory_bytes", (url, "total"), memory.total_bytes)
            yield Sample("gaelp_memory_bytes", (url, "free"), memory.free_bytes)
        held = [node.held_bytes for node in those if node.held_bytes is not None]
        if held:
            yield Sample("gaelp_memory_bytes", (url, "held"), max(held))
    for place, number in slots.items():
        yield Sample("gaelp_slots", place, number)
    if total:
        yield Sample("cluster_resource_usage", ("memory",), 1 - free / total)
    open_ones = [node for those in told.values() for node in those if not node.closed]
    if there := sum(node.slots for node in open_ones):
        yield Sample("cluster_resource_usage", ("slots",), min(1.0, busy_slots(open_ones) / there))


def _slots(node: NodeSnapshot, models: Names) -> dict[tuple[str, str, str], int]:
    """A node's slots by model and state; `unloaded` are those that a model would have in memory."""
    found: Counter[tuple[str, str, str]] = Counter()
    if not node.by_model:
        found[node.url, ANY, "busy"] = node.busy
        found[node.url, ANY, "free"] = max(0, node.slots - node.busy)
    for one in node.by_model:
        place, left = (node.url, models.of(one.model)), max(0, one.slots - one.busy)
        found[*place, "busy"] += one.busy
        found[*place, "free"] += left if one.phase else 0
        found[*place, "unloaded"] += 0 if one.phase else left
    return found
