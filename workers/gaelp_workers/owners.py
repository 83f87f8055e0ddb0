"""The owners of a worker's nodes, and what all of them together let in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf

from gaelp_tasks.clients import DistributedOllamaClient, LocalOllamaClient
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.models.capacity import MemorySnapshot, Resident
from gaelp_tasks.queues import model_of, tier_of
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.resources import Node, Resources
from gaelp_workers.dispatch import names_in_queues
from gaelp_workers.footprints import Footprints
from gaelp_workers.known import KnownQueues
from gaelp_workers.memory import NodeMemory
from gaelp_workers.owner import Around, Owner
from gaelp_workers.sight import Queued
from gaelp_workers.thresholds import GIB, Limits

LOAD_AGAIN_S = 1.0  #: after a load that failed; the runs' own policy of retries makes longer pauses

__all__ = ["allowed", "limits_of", "names_of_pools", "names_of_queues", "owners_of", "queued"]


def limits_of(settings: Settings) -> Limits:
    """What the node's owner allows, by the settings."""
    reserve_bytes = int(settings.os_reserve)
    return Limits(
        reserve_bytes=reserve_bytes,
        safety_factor=settings.safety_factor,
        soft_bytes=min(GIB, reserve_bytes // 2),
        poll_s=settings.poll_interval_s,
        fast_poll_s=min(Limits().fast_poll_s, settings.poll_interval_s),
        load_s=settings.load_timeout_s,
        most_wait_s=settings.max_wait_s or inf,
        load_again_s=LOAD_AGAIN_S,
    )


def owners_of(
    worker: str,
    at: Resources,
    memories: Mapping[str, NodeMemory],
    limit: Callable[[], int],
    queued: Callable[[], Iterable[Queued]] = tuple,
    preempt: Callable[[Iterable[str]], None] = lambda _: None,
) -> dict[str, Owner]:
    """An owner for each node by its address; `limit` is what each model may have, all nodes together."""
    made: dict[str, Owner] = {}
    for number, node in enumerate(at.nodes):
        client = _client(at, node)
        if client is None:
            continue
        key = at.keys.learned(worker, node.url)
        share = partial(_share, at, limit, number)
        memory = memories[node.url]

        def measure(listed: Sequence[Resident], memory: NodeMemory = memory) -> MemorySnapshot:
            return memory(listed).memory

        def to_come(url: str = node.url) -> int:
            others = (made[other] for other in made.keys() - {url} if memories[other].here)
            return sum(owner.to_come_bytes for owner in others) if memories[url].here else 0

        made[node.url] = Owner(
            at,
            node,
            client,
            Footprints(client, at.settings, at.redis, key, share),
            Around(
                measure=measure if memory.tells else None,
                others_to_come=to_come,
                queued=queued,
                preempt=preempt,
            ),
            limits_of(at.settings),
        )
    return made


def _client(at: Resources, node: Node) -> LocalOllamaClient | None:
    """By which the runs call this node; None for a client of somebody's own."""
    if isinstance(at.client, DistributedOllamaClient):
        return at.client.client(node.address)
    return at.client if isinstance(at.client, LocalOllamaClient) else None


def _share(at: Resources, limit: Callable[[], int], number: int) -> int:
    return at.shares(limit())[number]


def allowed(at: Resources, owners: Mapping[str, Owner], limit: int) -> dict[str, int]:
    """Runs of each model that may be here at once, over all nodes that are well; all of them where none is.

    A node of which nothing is known yet gives each of its models its share.
    """
    shares = dict(zip((node.url for node in at.nodes), at.shares(limit), strict=True))
    well = [node for node in at.nodes if node.well] or list(at.nodes)
    found: dict[str, int] = {}
    for node in well:
        owner, share = owners.get(node.url), shares[node.url]
        known = owner.capacity if owner is not None else None
        if owner is None or known is None:
            known = dict.fromkeys(map(canonical, node.models), share)
        for model, slots in known.items():
            # the owner looks now and then, and the share may have been lowered a moment ago
            seats = owner is not None and owner.footprints.embeds(model) and share > 0
            found[model] = found.get(model, 0) + (slots if seats else min(slots, share))
    return found


def names_of_queues(at: Resources, owners: Mapping[str, Owner]) -> Mapping[str, str]:
    """How queues call the models of these nodes; what names none goes by the settings, else to the first."""
    models = tuple(dict.fromkeys(canonical(model) for node in at.nodes for model in node.models))
    embed = [model for model in models if any(owner.footprints.embeds(model) for owner in owners.values())]
    write = [model for model in models if model not in embed]
    default = at.settings.default_model or next(iter(write), "")
    return names_in_queues(models, default, at.settings.embed_model or next(iter(embed), ""))


def names_of_pools(at: Resources, owners: Mapping[str, Owner]) -> Mapping[str, str]:
    """The same without models that no node can ever load: calls of those come, and are told so."""
    names = names_of_queues(at, owners)
    hopeless = [owner.hopeless for owner in owners.values()]
    never = frozenset.intersection(*hopeless) if hopeless else frozenset()
    return {name: model for name, model in names.items() if model not in never} if never else names


def queued(at: Resources, owners: Mapping[str, Owner], known: KnownQueues) -> list[Queued]:
    """What waits in the queues for models of these nodes, by this process' own clock."""
    names, ahead_s = names_of_queues(at, owners), at.now() - at.tick()
    return [
        Queued(names[model_of(queue)], tier, one.count, one.since_s - ahead_s)
        for queue, one in known.waiting.items()
        if (tier := tier_of(queue)) is not None and model_of(queue) in names
    ]
