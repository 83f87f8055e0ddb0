"""Messages of training jobs: sent to their queue, and looked for everywhere in Redis."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import unavailable
from gaelp_tasks.queues import TRAINING, lists, step_of

__all__ = ["Call", "missing", "send"]

logger = logging.getLogger(__name__)

TASK = "gaelp.run_training_job"
VERSION = 1  #: of the envelope: a message carries the number of a job, and nothing else


class Call(NamedTuple):
    """A message to be published."""

    job_id: int
    task_id: str
    priority: int
    due_at: datetime | None


def send(app: GaelpApp, calls: Sequence[Call]) -> list[Call]:
    """Publish them in their order; those that Redis took."""
    sent: list[Call] = []
    queue = Queue(TRAINING, Exchange(""), routing_key=TRAINING)  # type: ignore[no-untyped-call]
    with app.unheard():
        for call in calls:
            headers = {"gaelp_version": VERSION, "gaelp_published_at": datetime.now(UTC).timestamp()}
            try:
                app.send_task(
                    TASK,
                    (call.job_id,),
                    task_id=call.task_id,
                    queue=queue,
                    exchange="",
                    routing_key=TRAINING,
                    declare=(),
                    priority=step_of(call.priority),
                    eta=call.due_at,
                    ignore_result=True,
                    headers=headers,
                )
            except (OperationalError, *unavailable) as error:
                logger.warning("Job %d is not published yet: %s", call.job_id, error)
                break
            sent.append(call)
    return sent


def missing(app: GaelpApp, task_ids: Sequence[str]) -> set[str]:
    """Those whose message is nowhere in Redis, at one moment; none where Redis does not tell."""
    keys = app.keys
    try:
        with app.redis.pipeline() as pipe:
            for name in lists(TRAINING):
                pipe.lrange(keys.queue(name), 0, -1)
            pipe.lrange(keys.suspects, 0, -1)
            pipe.zmscore(keys.parked, list(task_ids))
            pipe.mget([keys.holder(task_id) for task_id in task_ids])
            pipe.hkeys(keys.unacked)
            *texts, parked, tags, held = pipe.execute()
    except unavailable as error:
        logger.warning("Training jobs cannot be looked after: %s", error)
        return set()
    waiting, holding = "\n".join(text for some in texts for text in some), set(held)
    return {
        task_id
        for task_id, due, tag in zip(task_ids, parked, tags, strict=True)
        if task_id not in waiting and due is None and tag not in holding
    }
