"""Looking at the running system: nodes, queues, and where one invocation is."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from time import time
from typing import Any, NamedTuple

from pydantic import ValidationError

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import worded
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.lifecycle import State, state_of
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queued import (
    WHOLE,
    Place,
    Seen,
    depths_of,
    find_queued,
    held,
    id_of,
    look,
    queued,
    queues_of,
    read,
    whereabouts,
)
from gaelp_tasks.queues import INBOXES, tier_of
from gaelp_tasks.streams import End, Event, Start, parse
from gaelp_tasks.waiting import (
    Expected,
    Waiting,
    busy_slots,
    expected,
    has,
    same,
    why_not_begun,
    why_queued,
)

__all__ = [
    "WHOLE",
    "AmbiguousId",
    "Description",
    "Place",
    "Runner",
    "View",
    "busy_slots",
    "describe",
    "describe_all",
    "find_queued",
    "live_nodes",
    "of_tiers",
    "queues_of",
    "runners",
    "view",
    "waiting_in",
    "whole_id",
]

FEWEST = 6  #: characters that stand for a whole id
MOST_NAMED = 5  #: ids


class AmbiguousId(GaelpError):
    """The beginning of an id that several invocations share."""


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
    expected: Expected | None = None  #: when it starts; None where it is not queued


class View(NamedTuple):
    """All that waits and runs at one moment, for who is asked about many."""

    seen: Seen
    nodes: list[NodeSnapshot]


class Told(NamedTuple):
    """What was found out of one invocation, to say what it waits for."""

    start: dict[str, Any]
    waits: Waiting | None  #: None where no queue holds it
    nodes: list[NodeSnapshot]  #: those that live; none looked for where it neither waits nor runs
    cancelled: bool
    due_ms: float | None  #: Unix time, of what is parked
    reason: str  #: why it is parked, '' where nobody says


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


def view(app: GaelpApp) -> View:
    """Look at everything. Raises BrokerUnavailable."""
    return View(look(app), live_nodes(app))


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


def of_tiers(waiting: Mapping[str, int]) -> dict[str, int]:
    """The depths of queues summed up by tier, highest tier first."""
    return {tier: sum(depth for name, depth in waiting.items() if tier_of(name) == tier) for tier in INBOXES}


def waiting_in(app: GaelpApp) -> dict[str, int]:
    """Messages waiting per queue, highest tier first; 0 for a known one that is empty.

    Raises BrokerUnavailable.
    """
    with worded(app.settings):
        queues = [queue for tier in INBOXES for queue in queues_of(app, tier)]
        return dict(zip(queues, depths_of(app, queues), strict=True))


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
        known |= {name for message, _ in queued(app) if (name := id_of(read(message)))}
        known |= held(app) | {name for name, _ in parked}
    known |= {name for node in live_nodes(app) for name in (*node.running, *node.unplaced)}
    found = sorted(name for name in known if name.startswith(given))
    if given in found or not found:
        return given
    if len(found) > 1:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise AmbiguousId(f"{given} could be {', '.join(found[:MOST_NAMED])}{more}: give more of the id.")
    return found[0]


def describe(app: GaelpApp, invocation_id: str) -> Description:
    """Everything known about one invocation. Raises BrokerUnavailable."""
    return describe_all(app, [invocation_id])[0]


def describe_all(app: GaelpApp, ids: Sequence[str], lately: View | None = None) -> list[Description]:
    """The same of several. Raises BrokerUnavailable.

    With `lately` what others do is as it was then, and so is a place, if its sender writes ids as we do.
    """
    if not ids:
        return []
    backend = app.backend
    with worded(app.settings):
        with app.redis.pipeline(transaction=False) as pipe:
            for name in ids:
                pipe.xrevrange(app.keys.stream(name), count=1)
                pipe.exists(app.keys.cancel(name))
                pipe.zscore(app.keys.parked, name)
            told = iter(pipe.execute())
        keys = [backend.get_key_for_task(name) for name in ids]
        records = backend.mget(keys) if len(keys) > 1 else [backend.get(keys[0])]
    metas = [backend.decode_result(record) if record else {"status": "PENDING"} for record in records]
    return [
        _described(app, name, (next(told), next(told), next(told)), meta, lately)
        for name, meta in zip(ids, metas, strict=True)
    ]


def _described(
    app: GaelpApp, invocation_id: str, traces: tuple[Any, Any, Any], meta: dict[str, Any], lately: View | None
) -> Description:
    last, cancelled, due_ms = traces
    newest = parse(*last[0]) if last else None
    with worded(app.settings):
        entries: Any = []
        if newest is not None:
            entries = app.redis.xrange(app.keys.stream(invocation_id), f"{newest.claim}-0", count=1)
        parked: Any = None if due_ms is None else app.redis.hget(app.keys.parked_messages, invocation_id)
    status, result = meta["status"], meta.get("result")
    is_over = status in {"SUCCESS", "FAILURE", "REVOKED"}
    waits, is_held = whereabouts(app, invocation_id, lately and lately.seen, is_over=is_over)
    start: Event | None = parse(*entries[0]) if entries else None
    facts = start.facts if isinstance(start, Start) else {}
    mapping = result if isinstance(result, dict) and status == "SUCCESS" else None
    state = state_of(status, stop_reason=(mapping or {}).get("stop_reason"), in_queue=waits is not None)
    if state is State.UNKNOWN and (is_held or due_ms is not None):
        state = State.RUNNING if is_held else State.WAITING
    nodes: list[NodeSnapshot] = []
    if state in {State.QUEUED, State.RUNNING}:
        nodes = lately.nodes if lately else live_nodes(app)
    if waits and state is State.QUEUED:
        waits = waits._replace(lower=_giving_way(app, waits, nodes))
    told = Told(facts, waits, nodes, bool(cancelled), due_ms, _reason(parked, status, result))
    return Description(
        id=invocation_id,
        state=state,
        why=_why(invocation_id, state, told),
        place=Place(waits.queue, waits.position) if waits else None,
        start=facts,
        node=_node_of(invocation_id, state, told, mapping),
        end=newest.facts if isinstance(newest, End) else {},
        result=mapping,
        error=str(result) if status == "FAILURE" else "",
        expected=expected(waits, nodes, time())
        if waits and state is State.QUEUED and not cancelled
        else None,
    )


def _giving_way(app: GaelpApp, waits: Waiting, nodes: Iterable[NodeSnapshot]) -> int:
    """How many runs of lower tiers there are on its model; who named none counts where it is the only one."""
    tier, model = tier_of(waits.queue), waits.named
    if tier is None or tier is list(Tier)[-1] or not model:
        return 0
    able = [node for node in nodes if has(node, model)]
    only = all(same(one.model, model) for node in able for one in node.by_model if one.busy)
    return sum(
        run.tier in INBOXES
        and Tier(run.tier).rank > tier.rank
        and (same(run.model, model) if run.model else only)
        for run in runners(app, able)
    )


def _reason(parked: str | None, status: str, result: Any) -> str:
    """Why it is parked: what its record says, else what its last run met."""
    told = json.loads(parked.partition("\n")[0]).get("reason") if parked else None
    if told is None and status == "RETRY" and isinstance(result, Exception):
        told = str(result)
    return str(told or "").rstrip(".")


def _node_of(invocation_id: str, state: State, told: Told, result: dict[str, Any] | None) -> str:
    """The node that answered; where a worker has several, only its snapshots tell while the run goes on."""
    if result is not None:
        return str(result.get("node") or "")
    if state is State.RUNNING and told.start.get("node") == "":
        return next((node.url for node in told.nodes if invocation_id in node.running), "")
    return str(told.start.get("node") or "")


def _why(invocation_id: str, state: State, told: Told) -> str:
    """A sentence or a few on what it waits for; '' where it does not."""
    match state:
        case State.UNKNOWN:
            unknown = "No queue, stream or result here knows this id"
            return f"{unknown}: it was never accepted, or is forgotten by now."
        case State.WAITING:
            due = "" if told.due_ms is None else f", in {max(0.0, told.due_ms / 1000 - time()):,.0f} s"
            return f"It will be queued when it is due{due}{f': {told.reason}' if told.reason else ''}."
        case State.QUEUED if told.waits is not None:
            if told.cancelled:
                return "It was cancelled and ends as soon as a worker takes it."
            return why_queued(told.waits, told.nodes)
        case State.RUNNING:
            return _why_not_begun(invocation_id, told)
    return ""


def _why_not_begun(invocation_id: str, told: Told) -> str:
    """What a run waits for that has been taken and has said nothing yet."""
    places = [node for node in told.nodes if invocation_id in (*node.running, *node.unplaced)]
    heard = any(dict(zip(node.running, node.tokens, strict=False)).get(invocation_id) for node in places)
    return "" if heard else why_not_begun(str(told.start.get("model") or ""), places)
