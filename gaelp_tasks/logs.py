"""How our programs log: in lines for people, or as one JSON object a line (GAELP_LOG_FORMAT); docs/logs.md.

Inside a run each line names its invocation. A run costs no more than to note its request: what is told of it
is read from there when something is logged.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from socket import gethostname
from typing import Any

from celery import current_task
from celery.app.log import Logging as CeleryLogging
from celery.app.log import TaskFormatter
from celery.utils.log import ColorFormatter

from gaelp_tasks.asked import arguments, asked_for
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.queues import CALLS
from gaelp_tasks.settings import Settings

__all__ = ["BESIDE", "RUN", "Logging", "dress", "facts"]

#: Celery's request of the run that this thread, or this coroutine, belongs to. The list is emptied at its
#: end, for what a run has begun may go on, as the looks at a node do, and is no part of it any more
RUN: ContextVar[Sequence[Any]] = ContextVar("gaelp_run", default=())
#: what else a line in JSON tells
BESIDE: list[Callable[[], Mapping[str, Any]]] = []

LONGEST = 200  #: characters of a name that anybody may have written
CELERY = ("data", "task_id", "task_name")  #: that it adds to its records; arguments are among them


def running() -> Any:
    """The request of what runs here; None where nothing does."""
    run = tuple(RUN.get())  # another thread may empty it
    if run:
        return run[0]
    return current_task.request if current_task else None  # on a thread of Celery's


def facts(request: Any) -> dict[str, Any]:
    """What a line in JSON tells of its run: bounded names, no text of its caller."""
    task = str(request.get("task") or "")
    if task not in CALLS:
        return {"task": task[:LONGEST], "task_id": request.id}
    asked = asked_for(task, request, arguments(request))
    told = {
        "task": task,
        "invocation_id": request.id,
        "claim": request.get("gaelp_claim"),
        "agent": asked["agent"][:LONGEST],
        "tier": asked["tier"].value,
        "model": asked["model"][:LONGEST],
    }
    return {name: value for name, value in told.items() if value not in {"", None}}


def of_celery(given: Any) -> dict[str, Any]:
    """The task of a line of Celery's own, by what it puts into the line."""
    if not isinstance(given, Mapping) or "id" not in given or "name" not in given:
        return {}
    task = str(given["name"])
    return {"task": task[:LONGEST], "invocation_id" if task in CALLS else "task_id": given["id"]}


class Line:
    """Makes of a record what is rendered; `always` is told in every line."""

    def __init__(self, always: Mapping[str, Any]) -> None:
        self._always = always

    def __call__(self, _: Any, __: str, told: Any) -> dict[str, Any]:
        """As a processor of structlog."""
        record: logging.LogRecord = told.pop("_record")
        del told["_from_structlog"]
        request = running()
        of_run = facts(request) if request is not None and request.id else {}
        given = told.pop("positional_args", None)
        by_celery = of_celery(given) if record.name.startswith("celery.") else {}
        ours = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": told.pop("event"),
            **self._always,
            **by_celery,
            **of_run,
        }
        for tell in BESIDE:
            ours |= tell()
        left_out = {*CELERY, *ours}
        return {**ours, **{name: value for name, value in told.items() if name not in left_out}}


def as_json(worker: str = "") -> logging.Formatter:
    """What renders records of any logger. Raises SettingsError where structlog is not installed."""
    try:
        from structlog.processors import JSONRenderer, StackInfoRenderer, format_exc_info  # noqa: PLC0415
        from structlog.stdlib import ExtraAdder, ProcessorFormatter  # noqa: PLC0415  no producer needs it
    except ModuleNotFoundError:
        raise SettingsError(
            "GAELP_LOG_FORMAT: json needs more than a producer does: pip install 'gaelp-tasks[worker]'."
        ) from None
    always = {"host": gethostname()} | ({"worker": worker} if worker else {})
    return ProcessorFormatter(
        foreign_pre_chain=[ExtraAdder(), StackInfoRenderer(), format_exc_info],
        processors=[Line(always), JSONRenderer()],
        pass_foreign_args=True,
    )


class Text(ColorFormatter):
    """Celery's lines; inside a run one that does not name its task begins with the id."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """After the message is put together, before time and level are."""
        for request in tuple(RUN.get()):
            if str(request.id) not in record.message:
                record.message = f"[{request.id}] {record.message}"
        return str(super().formatMessage(record))


class TaskText(TaskFormatter):
    """Celery's lines of task loggers, which knows the task also on the loop of this process."""

    def format(self, record: logging.LogRecord) -> str:
        """Celery's own looks at its thread alone."""
        for request in tuple(RUN.get()):
            record.task_id, record.task_name = request.id, request.get("task")
        return str(super().format(record))


TEXT = {ColorFormatter: Text, TaskFormatter: TaskText}


class Logging(CeleryLogging):
    """Celery's set-up of logs with our formats; named by `log_cls` in gaelp_tasks.celery_app."""

    _worker = ""

    def setup(self, *args: Any, hostname: str | None = None, **how: Any) -> Any:
        """Celery's, which tells the name of a worker."""
        self._worker = hostname or ""
        return super().setup(*args, hostname=hostname, **how)

    def setup_handlers(self, *args: Any, formatter: Any = ColorFormatter, **how: Any) -> Any:
        """Celery's handlers with a formatter of ours. Raises SettingsError where structlog is missing."""
        if self.app.settings.log_format == "json":
            rendered = as_json(self._worker)

            def formatter_of(*_: Any, **__: Any) -> logging.Formatter:
                return rendered

            return super().setup_handlers(*args, formatter=formatter_of, **how)
        return super().setup_handlers(*args, formatter=TEXT.get(formatter, formatter), **how)


def dress(settings: Settings) -> None:
    """Have a program tell its log in JSON, if that is asked for, where Celery does not set it up, or not yet.

    Warnings of Python are lines, too. Raises SettingsError where structlog is missing.
    """
    if settings.log_format != "json":
        return
    root, rendered = logging.getLogger(), as_json()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
        root.setLevel(logging.INFO)
    for handler in root.handlers:
        handler.setFormatter(rendered)
    logging.captureWarnings(capture=True)
