"""Claims as a worker sends them, and messages for them."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from gaelp_tasks import app
from gaelp_tasks.keys import Keys
from gaelp_tasks.queues import INBOXES, place
from gaelp_workers.dispatch import OTHERS, Free, Held, Offer
from gaelp_workers.leases import Leases
from gaelp_workers.transport import PARTS

KEYS = Keys()
QUEUE = "interactive"
MOST_BYTES = 10_000
RESULTS = "celery-task-meta-"
NOTHING = (0, 0, [])


def holder(name: str, ttl_s: float = 60.0, tenant_max: int = 0) -> Leases:
    made = Leases(
        app.redis,
        KEYS,
        holder=name,
        ttl_s=ttl_s,
        claims_ttl_s=60.0,
        poison_deaths=5,
        results=RESULTS,
        tenant_max=tenant_max,
    )
    made.load()
    return made


def message(task_id: str, *, pad: str = "", **headers: Any) -> str:
    body = base64.b64encode(json.dumps([[pad], {}, {}]).encode()).decode()
    return json.dumps(
        {
            "body": body,
            "headers": {"id": task_id, "task": "t", "eta": None, **headers},
            "properties": {"delivery_info": {"routing_key": QUEUE}, "delivery_tag": "sender's own"},
        }
    )


def publish(*texts: str, queue: str = QUEUE) -> None:
    app.redis.lpush(queue, *texts)


def answer(leases: Leases, take: int, queues: tuple[str, ...], seats: int = 0) -> Any:
    """What a claim gives; each queue is a group of its own, inboxes are inboxes."""
    offered = Offer(queues, tuple(range(len(queues))))
    room = Free({OTHERS: take}, seats, 0)
    command = leases.claim_command(offered, room, INBOXES, most_bytes=MOST_BYTES)
    return app.redis.execute_command(*command)


def claim(leases: Leases, take: int = 1, queues: tuple[str, ...] = (QUEUE,), seats: int = 0) -> list[str]:
    """Ids of what was taken, in order."""
    taken, *_ = answer(leases, take, queues, seats)
    ids = []
    for at in range(0, len(taken), PARTS):
        _, tag, _, how, _, text = taken[at : at + PARTS]
        ids.append(json.loads(text)["headers"]["id"])
        leases.took(tag, Held(ids[-1], alone="a" in how))
    return ids


def reasons() -> list[str]:
    records: Any = app.redis.hvals(KEYS.dead_messages)
    return sorted(json.loads(record.partition("\n")[0])["reason"] for record in records)


def in_time(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def asking(task_id: str, task: str = "gaelp.invoke_agent", **arguments: Any) -> str:
    """A plain sender's call of a model."""
    body = base64.b64encode(json.dumps([["hi"], arguments, {}]).encode()).decode()
    told = json.loads(message(task_id, task=task)) | {"body": body}
    told["properties"]["body_encoding"] = "base64"
    return json.dumps(told)


def sort(leases: Leases, inbox: str = QUEUE) -> set[str]:
    """Sort what a claim found in an inbox; the queues it went to."""
    _, unsorted, *_ = answer(leases, 0, (inbox,))
    pairs = [(unsorted[at], unsorted[at + 1].encode()) for at in range(0, len(unsorted), 2)]
    places = [(source, text, place(text, inbox)) for source, text in pairs]
    return leases.sort([one for one in places if one[2]])  # type: ignore[misc]  those without are left out
