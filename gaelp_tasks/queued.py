"""The messages that wait in the queues: where each is, and what is taken before it."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import worded
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import INBOXES, arguments, lists, model_of, route, tier_of
from gaelp_tasks.waiting import Waiting

__all__ = [
    "WHOLE",
    "Place",
    "Seen",
    "depths_of",
    "find_queued",
    "held",
    "id_of",
    "look",
    "queued",
    "queues_of",
    "read",
    "whereabouts",
]

PAGE = 1000
LOOK_AT_MOST = 20_000  #: messages looked at for one id; a longer queue answers "queued, far back"
ID = '"id": "'  #: before the id of a message, as our publishers and Celery's write it
WHOLE = 36  #: characters of the ids that Celery makes


class Place(NamedTuple):
    """Where a queued invocation stands."""

    queue: str
    position: int  #: 1 is next


class Seen(NamedTuple):
    """One look at all that waits and runs, for who is asked about many."""

    queued: dict[str, tuple[str, Place]]  #: by id: a message, and where it is
    depths: dict[str, int]  #: of queues
    held: set[str]  #: ids of what workers have claimed and not settled yet


def queues_of(app: GaelpApp, tier: str) -> list[str]:
    """The queues of a tier: its inbox, and those of models that may hold something."""
    known: Any = app.redis.smembers(app.keys.queues)
    of_it = {name for name in known if tier_of(name) == tier} | {
        route(Tier(tier)),
        route(Tier(tier), embeds=True),
    }
    return [tier, *sorted(of_it)]


def depths_of(app: GaelpApp, queues: Sequence[str]) -> list[int]:
    """How many wait in each of these."""
    with app.redis.pipeline(transaction=False) as pipe:
        for name in (one for queue in queues for one in lists(queue)):
            pipe.llen(app.keys.queue(name))
        lengths = iter(pipe.execute())
    return [sum(next(lengths) for _ in lists(queue)) for queue in queues]


def find_queued(app: GaelpApp, invocation_id: str) -> Place | None:
    """The queue and position of an invocation, None where no queue holds it. Raises BrokerUnavailable."""
    found = _find(app, invocation_id)
    return None if found is None else Place(found.queue, found.position)


def _find(app: GaelpApp, invocation_id: str) -> Waiting | None:
    """The same, with what is taken before it."""
    with worded(app.settings):
        for message, place in queued(app):
            if id_of(told := read(message)) == invocation_id:
                return _waiting(told, place, sum(depths_of(app, _higher(place.queue))))
    return None


def _waiting(told: Any, place: Place, higher: int) -> Waiting:
    model = arguments(told).get("model")
    return Waiting(
        queue=place.queue,
        position=place.position,
        higher=higher,
        model=model if isinstance(model, str) else "",
        embeds=told["headers"].get("task") == "gaelp.embed",
    )


def _higher(queue: str) -> list[str]:
    """The queues of the same model in higher tiers."""
    tier, model = tier_of(queue), model_of(queue)
    above = list(Tier)[: tier.rank] if tier is not None and model else []
    return [f"{one}.{model}" for one in above]


def queued(app: GaelpApp) -> Iterator[tuple[str, Place]]:
    """The messages in the queues with their places, the next first."""
    for queue in (name for tier in INBOXES for name in queues_of(app, tier)):
        ahead = 0
        for name in lists(queue):
            key = app.keys.queue(name)
            for page in range(0, LOOK_AT_MOST, PAGE):
                messages: Any = app.redis.lrange(key, -page - PAGE, -page - 1)
                for number, message in enumerate(reversed(messages), start=1):
                    yield message, Place(queue, ahead + number)
                ahead += len(messages)
                if len(messages) < PAGE:
                    break


def look(app: GaelpApp) -> Seen:
    """All that waits and runs now, for `describe`. Raises BrokerUnavailable."""
    messages: dict[str, tuple[str, Place]] = {}
    depths: dict[str, int] = {}
    with worded(app.settings):
        for message, place in queued(app):
            messages.setdefault(message.partition(ID)[2][:WHOLE], (message, place))
            depths[place.queue] = place.position
        return Seen(messages, depths, held(app))


def held(app: GaelpApp) -> set[str]:
    """The ids of what workers have claimed and not settled yet."""
    records: Any = app.redis.hvals(app.keys.unacked)
    return {json.loads(record.partition("\n")[0])["id"] for record in records}


def whereabouts(
    app: GaelpApp, invocation_id: str, seen: Seen | None, *, is_over: bool
) -> tuple[Waiting | None, bool]:
    """The queue that it waits in, if any, and whether a worker has it."""
    if is_over:
        return None, False
    if seen is None:
        waits = _find(app, invocation_id)
        with worded(app.settings):
            return waits, invocation_id in held(app)
    waits = None
    if invocation_id in seen.queued:
        message, place = seen.queued[invocation_id]
        higher = sum(seen.depths.get(name, 0) for name in _higher(place.queue))
        waits = _waiting(read(message), place, higher)
    return waits, invocation_id in seen.held


def read(message: str) -> Any:
    """The envelope of a message; None for junk."""
    try:
        return json.loads(message)
    except ValueError:
        return None  # junk in the queue; the worker deals with it


def id_of(told: Any) -> str | None:
    """The id in an envelope; None where there is none."""
    try:
        return str(told["headers"]["id"])
    except (LookupError, TypeError):
        return None
