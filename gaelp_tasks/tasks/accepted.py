"""What was accepted over HTTP on its way into Redis, and looked for there. All of it blocks.

It travels as by `delay()`: checked again, routed, its long texts beside its message.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from time import time
from typing import Any, NamedTuple
from uuid import uuid4

from celery.states import REVOKED, SUCCESS
from kombu.exceptions import OperationalError

from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect, worded
from gaelp_tasks.errors import BrokerUnavailable, InvalidInvocation
from gaelp_tasks.lifecycle import State, state_of
from gaelp_tasks.models.acceptance import Acceptance, End, Standing
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.roundup import hashed, listed, lists
from gaelp_tasks.settings import masked
from gaelp_tasks.tasks.batch_lines import LineTasks, verdict
from gaelp_tasks.tasks.idempotency import digest_of
from gaelp_tasks.tasks.invoke import invoke_agent
from gaelp_tasks.tasks.wasted import wasted

__all__ = ["Checked", "Sent", "check", "ends", "life_of", "missing", "send", "states_of", "stop"]

DAY_S = 86_400
CLAIMS_OF_EACH = 1_000_000  #: so far above a lost message's claims are those of the next one
ID = b'"id": "'
WHOLE = 36  #: characters of an id


class Checked(NamedTuple):
    """What was found to be in order."""

    tier: str
    model: str  #: '' where none is named
    asked: str  #: the arguments as JSON
    digest: str  #: '' where no idempotency key asks for it


class Sent(NamedTuple):
    """What has become of some that were sent."""

    life: str  #: of the Redis that has them
    refused: dict[str, InvalidInvocation]  #: by id: they will never be taken


def check(app: GaelpApp, given: dict[str, Any]) -> Checked:
    """Whether `delay()` would take these arguments. Raises InvalidInvocation."""
    accepted: Any = app.tasks[invoke_agent.name].accept((), given, None)
    asked = json.dumps(accepted.wire(), separators=(",", ":"))
    most_bytes = app.settings.most_attachment_bytes
    if len(asked) > most_bytes:
        raise InvalidInvocation(
            f"Prompt and options take {len(asked):,} bytes as JSON and the limit is {most_bytes:,} "
            "(four times GAELP_MAX_PROMPT_BYTES)."
        )
    digest = "" if accepted.idempotency_key is None else digest_of(accepted)
    return Checked(accepted.tier.value, accepted.model or "", asked, digest)


def send(app: GaelpApp, rows: Sequence[Acceptance], *, again: bool = False) -> Sent:
    """Publish these in one round trip; times count from when they were accepted.

    `again`: they may have been there before. Raises BrokerUnavailable: any of them may be there.
    """
    refused = {}
    task = app.tasks[invoke_agent.name]
    life = life_of(app)
    if again:
        _make_way(app, rows)
    try:
        with app.unheard(), app.together() as producer:
            for row in rows:
                headers = {"gaelp_published_at": row.created_at.timestamp()}
                try:
                    task.apply_async(
                        (), json.loads(row.asked), task_id=row.id, producer=producer, headers=headers
                    )
                except InvalidInvocation as error:
                    refused[row.id] = error
    except OperationalError as error:
        place = masked(app.settings.broker_url)
        raise BrokerUnavailable(f"Redis at {place} does not take what was accepted ({error}).") from error
    return Sent(life, refused)


def _make_way(app: GaelpApp, rows: Sequence[Acceptance]) -> None:
    """Forget the marks by which they count as published; fence what was lost off, should it still run."""
    life_ms = int((app.settings.result_ttl_s + app.settings.stream_ttl_s + DAY_S) * 1000)
    with worded(app.settings), app.redis.pipeline(transaction=False) as pipe:
        for row in rows:
            pipe.delete(app.keys.asked(row.id))
            if row.publications:
                pipe.set(app.keys.claims(row.id), row.publications * CLAIMS_OF_EACH, nx=True, px=life_ms)
        pipe.execute()


def life_of(app: GaelpApp) -> str:
    """The name of this life of Redis: an emptied one begins another. Raises BrokerUnavailable."""
    with worded(app.settings), app.redis.pipeline(transaction=False) as pipe:
        pipe.set(app.keys.accepted_life, f"{time():.0f}-{uuid4().hex}", nx=True)
        pipe.get(app.keys.accepted_life)
        return str(pipe.execute()[1])


def ends(app: GaelpApp, ids: Sequence[str]) -> list[End]:
    """How those of these have ended that have, by Celery's records. Raises BrokerUnavailable."""
    with worded(app.settings):
        told = LineTasks(app, tenant="").ended(ids)
        lost = wasted(app, list(told))
    found = (_end(name, record) for name, record in told.items())
    return [end._replace(wasted_tokens=lost.get(end.id, 0)) for end in found]


def _end(name: str, record: Mapping[str, Any]) -> End:
    result = record["result"]
    if record["status"] == SUCCESS and isinstance(result, Mapping):
        reason = str(result.get("stop_reason") or "stop")
        whole = state_of(SUCCESS, stop_reason=reason, in_queue=False) is State.DONE
        return End(name, Standing.DONE if whole else Standing.CUT, reason, result=result)
    if record["status"] == REVOKED:
        return End(name, Standing.CUT, "cancelled")
    failed = verdict(0, record)
    return End(name, Standing.FAILED, error=f"{failed.code}: {failed.why}")


def states_of(app: GaelpApp, ids: Sequence[str]) -> dict[str, State]:
    """Where these are by a quick look, which does not search the queues. Raises BrokerUnavailable."""
    with worded(app.settings), app.redis.pipeline(transaction=False) as pipe:
        for name in ids:
            pipe.zscore(app.keys.parked, name)
            pipe.exists(app.keys.stream(name))
        told = pipe.execute() if ids else []
    return {
        name: State.WAITING if due is not None else State.RUNNING if has_begun else State.QUEUED
        for name, due, has_begun in zip(ids, told[::2], told[1::2], strict=True)
    }


def stop(app: GaelpApp, ids: Sequence[str]) -> None:
    """Have these stop, queued or running. Raises BrokerUnavailable."""
    with worded(app.settings):
        request_cancel(app.redis, app.keys, *ids, ttl_s=app.settings.cancel_ttl_s)


def missing(app: GaelpApp, ids: Collection[str]) -> set[str]:
    """Those of which no message is queued, parked, set aside or held, and that no worker says it runs.

    One look; what moves against its way is missed. Raises BrokerUnavailable.
    """
    left, keys = set(ids), app.keys
    with worded(app.settings), connect(app.settings, text=False) as redis:
        for place in (*lists(app), keys.suspects):
            for page in listed(redis, place):
                left.difference_update(map(_id_in, page))
            if not left:
                return left
        parked: Any = redis.zrange(keys.parked, 0, -1)
        left.difference_update(name.decode() for name in parked)
        for place in (keys.unacked, keys.dead_messages):
            for records in hashed(redis, place):
                left.difference_update(map(_id_in, records.values()))
    for node in live_nodes(app) if left else ():
        left.difference_update((*node.running, *node.unplaced))
    return left


def _id_in(message: bytes) -> str:
    """The id of a message or of its record, found without reading all of it; '' where there is none."""
    at = message.rfind(ID)
    return message[at + len(ID) : at + len(ID) + WHOLE].decode("ascii", "replace") if at >= 0 else ""
