"""What real publishers put into the queues: ours, and a plain Celery that knows nothing of us."""

import gc
import json
from collections.abc import Iterator
from typing import NamedTuple
from uuid import uuid4

import redis
from celery import Celery, chain, chord, group

from gaelp_tasks import app, embed, invoke_agent
from gaelp_tasks.models.invocation import Tier

__all__ = ["PROMPT", "Captured", "capture", "renamed"]

PROMPT = "Prompt-that-nobody-may-log"  #: in every message
MAINTENANCE = "gaelp.maintenance.expire_abandoned_streams"


class Captured(NamedTuple):
    """A message as its publisher left it."""

    queue: str  #: key of its list
    task_id: str
    message: bytes


def capture(store: redis.Redis, url: str) -> list[Captured]:
    """Messages of every kind; `store` answers in bytes, its queues are empty and nobody takes from them."""
    found = []
    for _ in _published(url):
        for key in list(store.scan_iter(_type="list")):
            while message := store.rpop(key):
                found.append(Captured(key.decode(), _id_of(message), message))
    gc.collect()  # handles of what will never run would ask for their results at the end of this process
    return found


def renamed(captured: Captured) -> Captured:
    """The same for a task of its own."""
    task_id = str(uuid4())
    return Captured(
        captured.queue, task_id, captured.message.replace(captured.task_id.encode(), task_id.encode())
    )


def _id_of(message: bytes) -> str:
    return str(json.loads(message)["headers"].get("id") or "of protocol 1")


def _published(url: str) -> Iterator[None]:
    """Publish one thing after the other."""
    for tier in Tier:
        invoke_agent.delay(PROMPT, tier=tier)
        yield
    invoke_agent.delay(PROMPT, options={"seed": 5, "num_predict": 5}, metadata={"a": [1]}, priority=9)
    yield
    embed.delay([PROMPT, "b"])
    yield
    invoke_agent.apply_async((PROMPT,), countdown=0.5, retries=2)
    yield
    invoke_agent.apply_async((PROMPT,), expires=600, time_limit=60, soft_time_limit=50)
    yield
    app.send_task(MAINTENANCE)
    yield
    one = invoke_agent.s(PROMPT)
    one.clone().apply_async(link=embed.si([PROMPT]), link_error=embed.si(["why"]))
    yield
    stamped = one.clone()
    stamped.stamp(customer="a")
    stamped.apply_async()
    yield
    chain(one.clone(), embed.si([PROMPT]), one.clone()).apply_async().forget()
    yield
    group(one.clone(), embed.si([PROMPT])).apply_async().forget()
    yield
    chord([one.clone(), one.clone()], embed.si([PROMPT])).apply_async().forget()
    yield
    plain = Celery(broker=url)
    with plain:
        for protocol in (1, 2):
            plain.conf.task_protocol = protocol
            plain.send_task("gaelp.invoke_agent", (PROMPT,), {"tier": "batch"}, queue="batch")
            yield
        plain.send_task("gaelp.embed", ([PROMPT],), queue="background", priority=6)
        yield
        plain.send_task("gaelp.invoke_agent", (PROMPT,), {"nobody": 1}, queue="interactive", countdown=1)
        yield
        plain.send_task("nobody.knows.it", (PROMPT,), queue="interactive")
        yield
