"""Celery's remote control commands, as far as our pool and our tasks must answer otherwise.

Revoking a model task cancels it: it settles with its partial text wherever it is. Every other task is revoked
Celery's way. Celery keeps its commands in one registry for the process, where ours replace those of the name.
"""

import json
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.utils.functional import maybe_list
from celery.worker import control as celerys
from celery.worker import state as held
from celery.worker.control import Panel, nok, ok
from kombu.entity import Exchange, Queue

from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.connections import unavailable
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import route
from gaelp_tasks.tasks.base import ModelTask
from gaelp_workers.dispatch import offer
from gaelp_workers.request import Request
from gaelp_workers.transport import Transport

__all__ = ["NO_AUTOSCALE", "Recalls"]

NO_AUTOSCALE = (
    "autoscale: the slots of a worker are its node's, whatever the load; use pool_grow, pool_shrink."
)


@Panel.register(type="control", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: Any, task_id: Any, **_: Any) -> Any:
    """Revoke task by task id (or list of ids); one that calls a model ends as `cancel` ends it.

    Which task an id unknown here belongs to, nobody can tell before its message comes: it is remembered, and
    answered then. To terminate is the same: other tasks that run already cannot be interrupted in a thread.
    """
    ids = set(maybe_list(task_id) or ())
    known = {an_id: held.requests[an_id] for an_id in ids if an_id in held.requests}
    app = state.app
    waiting = ids - known.keys()
    others = {an_id for an_id, request in known.items() if not isinstance(request, Request)}
    others |= {an_id for an_id in waiting if is_parked_by_another(app, an_id)}
    if others:
        celerys.revoke(state, others)
    ours = ids - others
    held.revoked.update(ours)
    if ours | waiting:
        request_cancel(app.redis, app.keys, *(ours | waiting), ttl_s=app.settings.cancel_ttl_s)
    for an_id in ours & known.keys():
        end(known[an_id], state.consumer.pool)
    return ok(f"tasks {', '.join(sorted(ids))} flagged as revoked")


@Panel.register(
    type="control", variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]"
)
def terminate(state: Any, signal: Any, task_id: Any, **_: Any) -> Any:  # noqa: ARG001  Celery's names
    """Terminate task by task id (or list of ids)."""
    return revoke(state, task_id)


@Panel.register(
    type="control", variadic="headers", signature="[key1=value1 [key2=value2 [... [keyN=valueN]]]]"
)
def revoke_by_stamped_headers(state: Any, headers: Any, **_: Any) -> Any:
    """Revoke task by header (or list of headers); those that call a model end as `cancel` ends them."""
    answer = celerys.revoke_by_stamped_headers(state, headers)
    for request in tuple(held.requests.values()):
        if isinstance(request, Request) and request.recalled:
            end(request, state.consumer.pool)
    return answer


@Panel.register(type="inspect")
def active_queues(state: Any) -> list[dict[str, Any]]:
    """List the queues this worker takes from, those of models too."""
    consumer = state.consumer.task_consumer
    declared = {queue.name: queue for queue in consumer.queues} if consumer else {}
    modelless = {route(tier, embeds=embeds) for tier in Tier for embeds in (False, True)}
    names = offer(list(declared), modelless.union(Transport.known.served)).queues
    taken = (declared.get(name) or _anonymous(name) for name in names)
    return [dict(queue.as_dict(recurse=True)) for queue in taken]


def _anonymous(name: str) -> Any:
    return Queue(name, Exchange(""), routing_key=name)  # type: ignore[no-untyped-call]


@Panel.register(type="control", args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(state: Any, max: Any = None, min: Any = None) -> Any:  # noqa: A002, ARG001  Celery's names
    """Modify autoscale settings."""
    return nok(NO_AUTOSCALE)


def is_parked_by_another(app: Any, task_id: str) -> bool:
    """Whether it waits in Redis for its time and calls no model."""
    record: Any = app.redis.hget(app.keys.parked_messages, task_id)
    if record is None:
        return False
    task = app.tasks.get(json.loads(record.partition("\n")[2])["headers"]["task"])
    return not isinstance(task, ModelTask)


def end(request: Request, pool: Any) -> None:
    """Have a request of ours settle now: running, or waiting here for its time."""
    if request in held.scheduled_requests:
        waiting = request._eta_timer_entry  # noqa: SLF001  Celery offers no way to run one early
        waiting.cancel()
        waiting()
    elif request in held.active_requests:
        request.terminate(pool)
    # one reserved here is stopped as it is accepted


class Recalls(bootsteps.StartStopStep):
    """Look each poll whether something that waits here for its time was cancelled; it shall not wait on."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self._timer: Any = None
        super().__init__(c, **kwargs)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Once per connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = hub.call_repeatedly(c.app.settings.poll_interval_s, self.look, c)

    def look(self, c: Any) -> None:
        """End those with a standing request to cancel."""
        waiting = [request for request in tuple(held.scheduled_requests) if isinstance(request, Request)]
        if not waiting:
            return
        with suppress(*unavailable):
            wishes: Any = c.app.redis.mget([c.app.keys.cancel(request.id) for request in waiting])
            for request, wish in zip(waiting, wishes, strict=True):
                if wish is not None:
                    end(request, c.pool)
