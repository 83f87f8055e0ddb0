"""Publishing a run of a schedule, and what must be known of the system before it is."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.models.schedule import Schedule
from gaelp_tasks.overview import live_nodes, of_tiers, runners, waiting_in

__all__ = ["check", "is_idle", "publish"]


def _call(schedule: Schedule, tenant: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its named arguments and Celery's options; tenant '' is none."""
    given: dict[str, Any] = dict(schedule.kwargs)
    queue = schedule.queue
    if schedule.calls_model:
        given |= {"tenant": tenant} if tenant else {}
        given |= {} if queue else {"tier": str(schedule.counts_as)}
    elif schedule.tier is not None:
        queue = schedule.tier.value
    return given, {} if queue is None else {"queue": queue}


def _task(app: GaelpApp, schedule: Schedule) -> Any:
    """The task that it is, None for one of another program."""
    if schedule.calls_model and schedule.task not in app.tasks:
        app.loader.import_default_modules()
    return app.tasks.get(schedule.task)


def check(app: GaelpApp, schedule: Schedule) -> None:
    """Raises InvalidInvocation where a run would be refused here: unknown agents, prompts too long."""
    task = _task(app, schedule)
    if schedule.calls_model and task is not None:
        given, options = _call(schedule, "")
        task.accept((), given, options.get("queue"))


def publish(
    app: GaelpApp,
    schedule: Schedule,
    tenant: str,
    task_id: str,
    due: datetime,
    *,
    producer: Any = None,
    headers: Mapping[str, Any] | None = None,
) -> None:
    """Publish one run; what it may take before it begins counts from `due`.

    Raises InvalidInvocation, BrokerUnavailable, or kombu's OperationalError.
    """
    given, options = _call(schedule, tenant)
    if schedule.expires_s is not None:
        options["expires"] = due + timedelta(seconds=schedule.expires_s)
    options |= {"task_id": task_id, "producer": producer, "headers": dict(headers or {})}
    task = _task(app, schedule)
    with app.unheard():
        if task is not None:
            task.apply_async(schedule.args, given, **options)
        else:
            app.send_task(schedule.task, schedule.args, given, **options)


def is_idle(app: GaelpApp, tiers: tuple[Tier, ...]) -> bool:
    """Whether nothing is queued or running in these tiers. Raises BrokerUnavailable.

    A run that does not tell its tier, as a plain Celery task and one that has only just been taken, may be in
    them.
    """
    waiting = of_tiers(waiting_in(app))
    if any(waiting[tier.value] for tier in tiers):
        return False
    return not any(run.tier in (*tiers, "") for run in runners(app, live_nodes(app)))
