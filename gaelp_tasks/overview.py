"""Looking at the running system: nodes, queues, and where one invocation is."""

import json
from typing import Any, NamedTuple

from pydantic import ValidationError

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import worded
from gaelp_tasks.lifecycle import State, state_of
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.queues import INBOXES
from gaelp_tasks.results import InvocationHandle
from gaelp_tasks.streams import End, Event, Start, parse

__all__ = ["Description", "Place", "describe", "find_queued", "live_nodes", "queue_depths"]

#: kombu's sub-keys of a queue, one per step of message priority (kombu.transport.redis.Channel)
SUB_KEYS = ("", "\x06\x163", "\x06\x166", "\x06\x169")
PAGE = 1000
LOOK_AT_MOST = 20_000  #: messages looked at for one id; a longer queue answers "queued, far back"


class Place(NamedTuple):
    """Where a queued invocation stands."""

    queue: str
    position: int  #: 1 is next


class Description(NamedTuple):
    """What `gaelp show` tells about one invocation."""

    id: str
    state: State
    why: str  #: one sentence
    place: Place | None
    start: dict[str, Any]  #: facts of its last start: worker, node, agent, attempt; {} before that
    end: dict[str, Any]  #: facts of its end; {} before that
    result: Any  #: the result mapping, None before the end or for a failure
    error: str  #: what it failed with, '' otherwise


def live_nodes(app: GaelpApp) -> list[NodeSnapshot]:
    """What the workers announce right now, by name. Raises BrokerUnavailable."""
    nodes = []
    with worded(app.settings):
        for key in app.redis.scan_iter(match=app.keys.node("*"), count=1000):
            text: Any = app.redis.get(key)
            try:
                nodes.append(NodeSnapshot.model_validate_json(text))
            except ValidationError:
                continue  # expired between the two commands, or written by another release
    return sorted(nodes, key=lambda node: node.worker)


def queue_depths(app: GaelpApp) -> dict[str, int]:
    """Messages waiting per tier, highest tier first. Raises BrokerUnavailable."""
    with worded(app.settings), app.redis.pipeline(transaction=False) as pipe:
        for name in INBOXES:
            for sub_key in SUB_KEYS:
                pipe.llen(app.keys.queue(name) + sub_key)
        lengths = pipe.execute()
    steps = len(SUB_KEYS)
    return {name: sum(lengths[at * steps : (at + 1) * steps]) for at, name in enumerate(INBOXES)}


def find_queued(app: GaelpApp, invocation_id: str) -> Place | None:
    """The queue and position of an invocation, None where no queue holds it. Raises BrokerUnavailable."""
    with worded(app.settings):
        for name in INBOXES:
            ahead = 0
            for sub_key in SUB_KEYS:
                key = app.keys.queue(name) + sub_key
                for page in range(0, LOOK_AT_MOST, PAGE):
                    messages: Any = app.redis.lrange(key, -page - PAGE, -page - 1)
                    for number, message in enumerate(reversed(messages), start=1):
                        if _id_of(message) == invocation_id:
                            return Place(name, ahead + number)
                    ahead += len(messages)
                    if len(messages) < PAGE:
                        break
    return None


def _id_of(message: str) -> str | None:
    try:
        return str(json.loads(message)["headers"]["id"])
    except (ValueError, KeyError, TypeError):
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
        meta = handle.backend.get_task_meta(invocation_id)
    status, result = meta["status"], meta.get("result")
    place = None if status in {"SUCCESS", "FAILURE", "REVOKED"} else find_queued(app, invocation_id)
    start: Event | None = parse(*entries[0]) if entries else None
    mapping = result if isinstance(result, dict) and status == "SUCCESS" else None
    state = state_of(status, stop_reason=(mapping or {}).get("stop_reason"), in_queue=place is not None)
    return Description(
        id=invocation_id,
        state=state,
        why=_why(app, state, place, cancelled=cancelled),
        place=place,
        start=start.facts if isinstance(start, Start) else {},
        end=newest.facts if isinstance(newest, End) else {},
        result=mapping,
        error=str(result) if status == "FAILURE" else "",
    )


def _why(app: GaelpApp, state: State, place: Place | None, *, cancelled: bool) -> str:
    """One sentence on what it waits for."""
    if state is State.UNKNOWN:
        return "No queue, stream or result here knows this id: it was never accepted, or is forgotten by now."
    if state is State.WAITING:
        return "It will be queued again when it is due, after an error or for want of room."
    if state is not State.QUEUED or place is None:
        return ""
    if cancelled:
        return "It was cancelled and ends as soon as a worker takes it."
    nodes = live_nodes(app)
    if not nodes:
        return "No worker is running: start one with `gaelp worker`, or everything with `make up`."
    busy = sum(len(node.running) for node in nodes)
    slots = sum(node.slots for node in nodes)
    return f"{place.position - 1} ahead of it in queue {place.queue}; {busy} of {slots} slots are busy."
