"""What the runs of one process share: connections, clients, streams, and who runs right now."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from random import Random, SystemRandom
from socket import gethostname
from time import monotonic, time
from typing import Any
from weakref import WeakValueDictionary

from gaelp_tasks.cache import Cache
from gaelp_tasks.cancellation import Runs
from gaelp_tasks.celery_app import GaelpApp, app
from gaelp_tasks.clients import (
    BaseOllamaClient,
    DistributedOllamaClient,
    LocalOllamaClient,
    client_from_settings,
)
from gaelp_tasks.clients.routers import NodeRouter
from gaelp_tasks.connections import AsyncRedis, connect_async, unavailable
from gaelp_tasks.keys import Keys
from gaelp_tasks.line import open_line
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import lists, route, tier_of
from gaelp_tasks.retries import RetryPolicy
from gaelp_tasks.runtime import Runtime, shared_runtime
from gaelp_tasks.settings import Settings
from gaelp_tasks.streams import StreamWriter
from gaelp_tasks.tasks.demand import Demand
from gaelp_tasks.tasks.digests import Digests
from gaelp_tasks.tasks.joining import Joiner, Seats
from gaelp_tasks.tasks.meter import Meter, Tally

__all__ = ["Node", "Resources", "shared_resources"]


@dataclass(slots=True)
class Node:
    """One Ollama server of this worker."""

    url: str  #: without credentials, as people see it and as its answers name it
    client: BaseOllamaClient  #: of this server alone, for small questions; runs go by `Resources.client`
    #: a client whose calls let a model stay in memory for so many seconds
    lasting: Callable[[float], BaseOllamaClient]
    meter: Meter = field(default_factory=Meter)
    well: bool = True  #: as the worker last announced it
    models: tuple[str, ...] = ()  #: as it last listed them
    router: NodeRouter | None = None  #: that chooses among several nodes
    address: str = ""  #: the node's name with that router

    def answered(self, model: str, *, healthy: bool) -> None:
        """Tell who chooses how the model answered when it was asked: a hung one gets no more calls."""
        if self.router is not None:
            self.router.mark(self.address, model, healthy=healthy)


@dataclass(slots=True)
class Resources:
    """Everything a run needs from outside; tests put fakes and a clock of their own here."""

    settings: Settings
    keys: Keys
    redis: AsyncRedis
    streams: StreamWriter
    client: BaseOllamaClient
    runs: Runs
    policy: RetryPolicy
    nodes: tuple[Node, ...]  #: one or more, among which `client` chooses
    worker: str = field(default_factory=gethostname)
    lively: Callable[[], bool] = lambda: True  #: its leases were renewed lately, so that its runs are its own
    rng: Random = field(default_factory=SystemRandom)
    now: Callable[[], float] = time  #: Unix seconds, to compare with other machines
    tick: Callable[[], float] = monotonic  #: seconds, to measure with
    tallies: "WeakValueDictionary[str, Tally]" = field(default_factory=WeakValueDictionary)
    demand: Demand = field(default_factory=Demand)
    aside: set[str] = field(default_factory=set)  #: ids of tasks of the system queue: they take no slot
    cache: Cache = field(init=False)
    digests: Digests = field(init=False)
    joiner: Joiner = field(init=False)
    seats: Seats = field(init=False)  #: who embeds here

    def __post_init__(self) -> None:
        self.cache = Cache(self.redis, self.keys, self.settings)
        self.digests = Digests(
            lambda: [(node.url, node.client) for node in self.nodes],
            self.tick,
            fresh_s=self.settings.poll_interval_s,
        )
        seats = self.settings.embed_seats
        self.seats = Seats(seats, self.tick)
        self.joiner = Joiner(lambda: self.client, seats=seats, coming=self.seats.coming, backlog=self.backlog)

    async def backlog(self, model: str, rank: int) -> bool:
        """Whether embeddings of tiers down to this rank wait, which this process is about to fetch."""
        open_tiers = {tier_of(queue) for queue in self.seats.fetches_from()}
        pipe = self.redis.pipeline(transaction=False)
        for tier in list(Tier)[: rank + 1]:
            for named in (None, model) if tier in open_tiers else ():
                pipe.exists(*(self.keys.queue(name) for name in lists(route(tier, named, embeds=True))))
        try:
            return any(await pipe.execute())
        except unavailable:
            return False

    def cache_context(self) -> list[Any]:
        """What of the nodes changes an answer; without num_ctx each has a default of its own."""
        num_ctx = self.settings.num_ctx
        return [num_ctx] if num_ctx else sorted(node.url for node in self.nodes)

    @property
    def node(self) -> str:
        """The only node's address; '' where there are several and none has answered yet."""
        return self.nodes[0].url if len(self.nodes) == 1 else ""

    @property
    def models(self) -> set[str]:
        """What the nodes have, as they last said."""
        return {model for node in self.nodes for model in node.models}

    def shares(self, limit: int) -> list[int]:
        """How the nodes share the slots of the worker."""
        whole, rest = divmod(limit, len(self.nodes))
        return [whole + (number < rest) for number in range(len(self.nodes))]

    def slots(self, limit: int) -> int:
        """The slots of the nodes that are well; all of them where none is, for then a try must tell."""
        shares = zip(self.shares(limit), self.nodes, strict=True)
        return sum(share for share, node in shares if node.well) or limit

    def tally(self, invocation_id: str) -> Tally:
        """A new count of what one run receives; lives as long as the run keeps it."""
        made = Tally({node.url: node.meter for node in self.nodes}, self.tick)
        self.tallies[invocation_id] = made
        return made

    def running(self) -> dict[str, dict[str, int]]:
        """Who runs here now, by node, each with its tokens; '' holds those that no node has answered yet."""
        here: dict[str, dict[str, int]] = {url: {} for url in ("", *(node.url for node in self.nodes))}
        for invocation_id in self.runs.ids():
            if invocation_id in self.aside:
                continue
            tally = self.tallies.get(invocation_id)
            place = self.node or (tally.node if tally else "")
            here.get(place, here[""])[invocation_id] = tally.tokens if tally else 0
        return here


def _node(settings: Settings, url: str, runs_go_by: BaseOllamaClient) -> Node:
    def lasting(keep_alive_s: float) -> LocalOllamaClient:
        return LocalOllamaClient.from_settings(
            settings.model_copy(update={"keep_alive_s": keep_alive_s}), url
        )

    client = LocalOllamaClient.from_settings(settings, url)
    router = runs_go_by.router if isinstance(runs_go_by, DistributedOllamaClient) else None
    return Node(client.node, client, lasting, router=router, address=url)


async def _build(app: GaelpApp, runtime: Runtime) -> Resources:
    settings = app.settings
    client = client_from_settings(settings)
    redis = connect_async(settings)
    return Resources(
        settings=settings,
        keys=app.keys,
        redis=redis,
        streams=StreamWriter(open_line(settings), app.keys, ttl_s=settings.stream_ttl_s),
        client=client,
        runs=Runs(runtime.loop),
        policy=RetryPolicy(
            attempts=settings.retry_attempts,
            base_s=settings.retry_base_s,
            cap_s=settings.retry_cap_s,
            snooze_s=settings.snooze_s,
            by_error=settings.retry_by_error,
        ),
        nodes=tuple(_node(settings, url, client) for url in settings.ollama_nodes),
    )


@cache
def shared_resources() -> Resources:
    """The resources of this process, made at the first run. Raises SettingsError."""
    runtime = shared_runtime()
    return runtime.run(_build(app, runtime))
