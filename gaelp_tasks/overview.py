"""Looking at the running system: nodes, queues, and where one invocation is."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from time import time
from typing import Any, NamedTuple

from pydantic import ValidationError

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import worded
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.lifecycle import State, state_of
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import INBOXES, lists, route, tier_of
from gaelp_tasks.results import InvocationHandle
from gaelp_tasks.streams import End, Event, Start, parse

__all__ = [
    "WHOLE",
    "AmbiguousId",
    "Description",
    "Place",
    "Runner",
    "busy_slots",
    "describe",
    "find_queued",
    "live_nodes",
    "queue_depths",
    "queues_of",
    "runners",
    "whole_id",
]

PAGE = 1000
LOOK_AT_MOST = 20_000  #: messages looked at for one id; a longer queue answers "queued, far back"
WHOLE = 36  #: characters of the ids that Celery makes
FEWEST = 6  #: characters that stand for a whole id
MOST_NAMED = 5  #: ids


class AmbiguousId(GaelpError):
    """The beginning of an id that several invocations share."""


class Place(NamedTuple):
    """Where a queued invocation stands."""

    queue: str
    position: int  #: 1 is next


class Runner(NamedTuple):
    """One invocation that runs now; what its stream does not tell yet is '' or None."""

    id: str
    worker: str
    node: str  #: '' until one of the worker's several nodes has answered
    agent: str
    tier: str
    model: str  #: as asked for; '' is the node's choice
    attempt: int  #: 1 is the first
    since: float | None  #: Unix seconds, by the worker's clock
    tokens: int  #: so far


class Description(NamedTuple):
    """What `gaelp show` tells about one invocation."""

    id: str
    state: State
    why: str  #: one sentence
    place: Place | None
    start: dict[str, Any]  #: facts of its last start: worker, node, agent, attempt; {} before that
    node: str  #: that runs it or ran it; '' while that is open
    end: dict[str, Any]  #: facts of its end; {} before that
    result: Any  #: the result mapping, None before the end or for a failure
    error: str  #: what it failed with, '' otherwise


def live_nodes(app: GaelpApp) -> list[NodeSnapshot]:
    """What the workers announce right now of each of their nodes, by worker. Raises BrokerUnavailable."""
    nodes = []
    with worded(app.settings):
        for key in app.redis.scan_iter(match=app.keys.node("*"), count=1000):
            text: Any = app.redis.get(key)
            try:
                nodes.append(NodeSnapshot.model_validate_json(text))
            except ValidationError:
                continue  # expired between the two commands, or written by another release
    return sorted(nodes, key=lambda node: (node.worker, node.url))


def busy_slots(nodes: Iterable[NodeSnapshot]) -> int:
    """Slots that are taken. What no node has answered yet is told by all of its worker, and counts once."""
    told = list(nodes)
    embedding = {name for node in told for name in node.embedding}
    return len({name for node in told for name in (*node.running, *node.unplaced)} - embedding)


def runners(app: GaelpApp, nodes: Iterable[NodeSnapshot]) -> list[Runner]:
    """Who runs now, the longest running first, with the facts of its start. Raises BrokerUnavailable."""
    places: dict[str, tuple[str, str, int]] = {}
    for node in nodes:
        tokens = dict(zip(node.running, node.tokens, strict=False))
        places |= {name: (node.worker, node.url, tokens.get(name, 0)) for name in node.running}
        for name in node.unplaced:
            places.setdefault(name, (node.worker, "", 0))
    found = [
        Runner(
            id=name,
            worker=worker,
            node=url,
            agent=str(facts.get("agent") or ""),
            tier=str(facts.get("tier") or ""),
            model=str(facts.get("model") or ""),
            attempt=int(facts.get("attempt") or 1),
            since=facts.get("at"),
            tokens=count,
        )
        for (name, (worker, url, count)), facts in zip(
            places.items(), _starts(app, list(places)), strict=True
        )
    ]
    return sorted(found, key=lambda run: (run.since is None, run.since, run.id))


def _starts(app: GaelpApp, ids: list[str]) -> list[dict[str, Any]]:
    """The facts of each one's newest start, {} where there is none; reads no text of any stream."""
    if not ids:
        return []
    with worded(app.settings), app.redis.pipeline(transaction=False) as pipe:
        claims: Any = app.redis.mget([app.keys.claims(name) for name in ids])
        for name, claim in zip(ids, claims, strict=True):
            first = f"{claim or 0}-0"
            pipe.xrange(app.keys.stream(name), first, first)
        replies = pipe.execute()
    events = [parse(*entries[0]) if entries else None for entries in replies]
    return [event.facts if isinstance(event, Start) else {} for event in events]


def queues_of(app: GaelpApp, tier: str) -> list[str]:
    """The queues of a tier: its inbox, and those of models that may hold something."""
    known: Any = app.redis.smembers(app.keys.queues)
    of_it = {name for name in known if tier_of(name) == tier} | {
        route(Tier(tier)),
        route(Tier(tier), embeds=True),
    }
    return [tier, *sorted(of_it)]


def queue_depths(app: GaelpApp) -> dict[str, int]:
    """Messages waiting per tier, highest tier first. Raises BrokerUnavailable."""
    with worded(app.settings):
        names = {tier: [one for queue in queues_of(app, tier) for one in lists(queue)] for tier in INBOXES}
        with app.redis.pipeline(transaction=False) as pipe:
            for name in chain.from_iterable(names.values()):
                pipe.llen(app.keys.queue(name))
            lengths = iter(pipe.execute())
    return {tier: sum(next(lengths) for _ in of_it) for tier, of_it in names.items()}


def find_queued(app: GaelpApp, invocation_id: str) -> Place | None:
    """The queue and position of an invocation, None where no queue holds it. Raises BrokerUnavailable."""
    with worded(app.settings):
        return next((place for name, place in _queued(app) if name == invocation_id), None)


def _queued(app: GaelpApp) -> Iterator[tuple[str | None, Place]]:
    """The ids in the queues with their places, the next first; None for junk."""
    for queue in (name for tier in INBOXES for name in queues_of(app, tier)):
        ahead = 0
        for name in lists(queue):
            key = app.keys.queue(name)
            for page in range(0, LOOK_AT_MOST, PAGE):
                messages: Any = app.redis.lrange(key, -page - PAGE, -page - 1)
                for number, message in enumerate(reversed(messages), start=1):
                    yield _id_of(message), Place(queue, ahead + number)
                ahead += len(messages)
                if len(messages) < PAGE:
                    break


def _held(app: GaelpApp) -> set[str]:
    """The ids of what workers have claimed and not settled yet."""
    records: Any = app.redis.hvals(app.keys.unacked)
    return {json.loads(record.partition("\n")[0])["id"] for record in records}


def whole_id(app: GaelpApp, given: str) -> str:
    """The id that begins like this and is running, queued or has a stream; as given where there is none.

    What is shorter than 6 characters or as long as an id is returned as it is. Raises AmbiguousId,
    BrokerUnavailable.
    """
    if not FEWEST <= len(given) < WHOLE:
        return given
    stem = app.keys.stream("")
    escaped = re.sub(r"([\\*?\[\]])", r"\\\1", given)
    with worded(app.settings):
        keys: Any = app.redis.scan_iter(match=f"{stem}{escaped}*", count=1000)
        known: set[str] = {key.removeprefix(stem) for key in keys}
        parked: Any = app.redis.zscan_iter(app.keys.parked, match=f"{escaped}*", count=1000)
        known |= {name for name, _ in _queued(app) if name} | _held(app) | {name for name, _ in parked}
    known |= {name for node in live_nodes(app) for name in (*node.running, *node.unplaced)}
    found = sorted(name for name in known if name.startswith(given))
    if given in found or not found:
        return given
    if len(found) > 1:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise AmbiguousId(f"{given} could be {', '.join(found[:MOST_NAMED])}{more}: give more of the id.")
    return found[0]


def _id_of(message: str) -> str | None:
    try:
        return str(json.loads(message)["headers"]["id"])
    except (ValueError, LookupError, TypeError):
        return None  # junk in the queue; the worker deals with it


def describe(app: GaelpApp, invocation_id: str) -> Description:
    """Everything known about one invocation. Raises BrokerUnavailable."""
    handle = InvocationHandle(invocation_id, app=app, backend=app.backend)
    with worded(app.settings):
        entries: Any = app.redis.xrange(app.keys.stream(invocation_id), count=1)
        last: Any = app.redis.xrevrange(app.keys.stream(invocation_id), count=1)
        newest = parse(*last[0]) if last else None
        if newest is not None:
            entries = app.redis.xrange(app.keys.stream(invocation_id), f"{newest.claim}-0", count=1)
        cancelled = bool(app.redis.exists(app.keys.cancel(invocation_id)))
        due_ms: Any = app.redis.zscore(app.keys.parked, invocation_id)
        parked: Any = None if due_ms is None else app.redis.hget(app.keys.parked_messages, invocation_id)
        meta = handle.backend.get_task_meta(invocation_id)
    status, result = meta["status"], meta.get("result")
    place = None if status in {"SUCCESS", "FAILURE", "REVOKED"} else find_queued(app, invocation_id)
    with worded(app.settings):
        held = invocation_id in _held(app)
    start: Event | None = parse(*entries[0]) if entries else None
    facts = start.facts if isinstance(start, Start) else {}
    mapping = result if isinstance(result, dict) and status == "SUCCESS" else None
    state = state_of(status, stop_reason=(mapping or {}).get("stop_reason"), in_queue=place is not None)
    if state is State.UNKNOWN and (held or due_ms is not None):
        state = State.RUNNING if held else State.WAITING
    return Description(
        id=invocation_id,
        state=state,
        why=_why(app, state, place, cancelled=cancelled, due_ms=due_ms, parked=parked),
        place=place,
        start=facts,
        node=_node_of(app, invocation_id, state, facts, mapping),
        end=newest.facts if isinstance(newest, End) else {},
        result=mapping,
        error=str(result) if status == "FAILURE" else "",
    )


def _node_of(
    app: GaelpApp, invocation_id: str, state: State, facts: dict[str, Any], result: dict[str, Any] | None
) -> str:
    """The node that answered; where a worker has several, only its snapshots tell while the run goes on."""
    if result is not None:
        return str(result.get("node") or "")
    if state is State.RUNNING and facts.get("node") == "":
        return next((node.url for node in live_nodes(app) if invocation_id in node.running), "")
    return str(facts.get("node") or "")


def _why(
    app: GaelpApp,
    state: State,
    place: Place | None,
    *,
    cancelled: bool,
    due_ms: float | None,
    parked: str | None = None,
) -> str:
    """One sentence on what it waits for."""
    if state is State.UNKNOWN:
        return "No queue, stream or result here knows this id: it was never accepted, or is forgotten by now."
    if state is State.WAITING:
        due = "" if due_ms is None else f", in {max(0.0, due_ms / 1000 - time()):,.0f} s"
        reason = json.loads(parked.partition("\n")[0]).get("reason") if parked else None
        return f"It will be queued when it is due{due}{f': {reason}' if reason else ''}."
    if state is not State.QUEUED or place is None:
        return ""
    if cancelled:
        return "It was cancelled and ends as soon as a worker takes it."
    return _why_queued(app, place)


def _why_queued(app: GaelpApp, place: Place) -> str:
    nodes = live_nodes(app)
    if not nodes:
        return "No worker is running: start one with `gaelp worker`, or everything with `make up`."
    if all(node.closed for node in nodes):
        closed = ", ".join(sorted({f"{node.worker} ({node.closed})" for node in nodes}))
        return f"Nobody takes new work: {closed}. `gaelp nodes resume WORKER` ends a cordon."
    nodes = [node for node in nodes if not node.closed]
    busy = busy_slots(nodes)
    slots = sum(node.slots for node in nodes)
    return f"{place.position - 1} ahead of it in queue {place.queue}; {busy} of {slots} slots are busy."
