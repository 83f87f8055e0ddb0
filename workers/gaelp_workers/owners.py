"""The owners of a worker's nodes, and what all of them together let in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from gaelp_tasks.clients import DistributedOllamaClient, LocalOllamaClient
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.models.capacity import MemorySnapshot, Resident
from gaelp_tasks.queues import model_of, tier_of
from gaelp_tasks.tasks.resources import Node, Resources
from gaelp_workers.dispatch import names_in_queues
from gaelp_workers.footprints import Footprints
from gaelp_workers.known import KnownQueues
from gaelp_workers.memory import NodeMemory
from gaelp_workers.owner import Owner
from gaelp_workers.sight import Queued

__all__ = ["allowed", "less", "names_of_queues", "owners_of", "queued"]


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

        def measure(
            listed: Sequence[Resident], memory: NodeMemory = memory, url: str = node.url
        ) -> MemorySnapshot:
            others = (owner for other, owner in made.items() if other != url)
            return less(memory(listed).memory, sum(owner.to_come_bytes for owner in others))

        made[node.url] = Owner(
            at,
            node,
            client,
            Footprints(client, at.settings, at.redis, key, share),
            measure=measure if memory.tells else None,
            queued=queued,
            preempt=preempt,
        )
    return made


def less(memory: MemorySnapshot, to_come_bytes: int) -> MemorySnapshot:
    """Without what loads of other nodes will take: nodes of one machine share all but their budgets. Pure."""
    if memory.source == "budget":
        return memory
    return memory.model_copy(update={"free_bytes": max(0, memory.free_bytes - to_come_bytes)})


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


def queued(at: Resources, owners: Mapping[str, Owner], known: KnownQueues) -> list[Queued]:
    """What waits in the queues for models of these nodes, by this process' own clock."""
    names, ahead_s = names_of_queues(at, owners), at.now() - at.tick()
    return [
        Queued(names[model_of(queue)], tier, one.count, one.since_s - ahead_s)
        for queue, one in known.waiting.items()
        if (tier := tier_of(queue)) is not None and model_of(queue) in names
    ]
