"""The Celery app: the only file that hides Celery's defaults, each with its reason."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from threading import local
from typing import TYPE_CHECKING, Any

from celery import Celery, uuid
from kombu.entity import Exchange, Queue
from kombu.exceptions import BatchPublishError, OperationalError

from gaelp_tasks.addresses import for_celery, sentinels
from gaelp_tasks.connections import (
    ANSWER_S,
    NOT_NOW,
    SyncRedis,
    connect,
    in_words,
    sentinel_options,
    unavailable,
)
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.queues import INBOXES, STEPS, SYSTEM, model_of
from gaelp_tasks.settings import Settings, load_settings

if TYPE_CHECKING:
    from gaelp_tasks.tracing import Tracing

__all__ = ["GaelpApp", "app", "celery_settings"]


class GaelpApp(Celery):
    """A Celery app that knows our settings and our part of Redis; it reads the environment at first use."""

    control_cls = "gaelp_tasks.results:Control"
    log_cls = "gaelp_tasks.logs:Logging"

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(
            "gaelp_tasks",
            include=[
                "gaelp_tasks.tasks.invoke",
                "gaelp_tasks.tasks.embed",
                "gaelp_tasks.tasks.batch",
                "gaelp_tasks.tasks.maintenance",
                "gaelp_tasks.tasks.training",
            ],
        )
        self._given = settings
        self._of_thread = local()
        self.add_defaults(lambda: celery_settings(self.settings))

    def send_task(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's send_task, which also names the queue of a model, for workers that have not heard of it.

        With GAELP_TRACES the message takes the trace along. Raises kombu's OperationalError where Redis does
        not take the message.
        """
        try:
            if self.settings.traces:
                kwargs["task_id"] = kwargs.get("task_id") or uuid()
                with self.tracing.sending(*args[:1], **kwargs) as headers:
                    sent = super().send_task(*args, **{**kwargs, "headers": headers})
            else:
                sent = super().send_task(*args, **kwargs)
        except OperationalError as error:
            raise OperationalError(in_words(str(error))) from error
        queue = kwargs.get("queue")
        name = str(getattr(queue, "name", queue) or "")
        if model_of(name):
            if (together := getattr(self._of_thread, "queues", None)) is not None:
                together.add(name)
            else:
                self._name_queues(name)
        return sent

    def _name_queues(self, *names: str) -> None:
        with suppress(*unavailable):
            self.redis.sadd(self.keys.queues, *names)

    @contextmanager
    def together(self) -> Iterator[Any]:
        """Gives a producer: what this thread sends by it in here goes to Redis in one round trip, at the end.

        Raises kombu's OperationalError where Redis has not taken all of it: any part may be there.
        """
        try:
            with self.producer_pool.acquire(block=True) as producer:
                self._of_thread.queues = set()
                with producer.batch():
                    yield producer
            if names := self._of_thread.queues:
                self._name_queues(*names)
        except (BatchPublishError, *unavailable) as error:
            raise OperationalError(in_words(str(error.__cause__ or error))) from error
        finally:
            self._of_thread.queues = None

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """What this thread sends in here has no listener: nobody here asks for its results.

        Celery subscribes to the result of each message from the call on. Where nobody reads what comes of
        that it stays in memory: 250 bytes a call.
        """
        own: dict[str, Any] = self.backend.__dict__  # each thread has its own
        outer = own.get("on_task_call")
        own["on_task_call"] = lambda _producer, _task_id: None
        try:
            yield
        finally:
            if outer is None:
                del own["on_task_call"]
            else:
                own["on_task_call"] = outer

    @cached_property
    def settings(self) -> Settings:
        """The settings given, else those of the environment. Raises SettingsError."""
        return self._given or load_settings()

    @cached_property
    def keys(self) -> Keys:
        """Names of our keys in Redis."""
        return Keys(self.settings.namespace)

    @cached_property
    def tracing(self) -> "Tracing":
        """What tells OpenTelemetry; only where GAELP_TRACES is on. Raises SettingsError without the extra."""
        try:
            from gaelp_tasks.tracing import Tracing  # noqa: PLC0415  few are traced
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"GAELP_TRACES: OpenTelemetry is missing ({error.name}): pip install 'gaelp-tasks[otel]'."
            ) from None
        return Tracing()

    @cached_property
    def redis(self) -> SyncRedis:
        """Our own connections to the broker, shared by the threads of this process."""
        return connect(self.settings)


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Celery's configuration for our settings, each departure from its defaults with the reason."""
    prefix = {"global_keyprefix": settings.namespace} if settings.namespace else {}
    return {
        "broker_url": for_celery(settings.broker_url),
        "result_backend": for_celery(settings.results_url),
        "result_expires": settings.result_ttl_s,
        # or an answer that was given would be told as a failure when Redis is away for a moment
        "result_backend_always_retry": True,
        # nor when it is full, or has become a replica: whoever runs waits, and tells the answer then
        "result_backend_max_sleep_between_retries_ms": 500,
        "result_backend_transport_options": {
            **prefix,
            **_by_sentinels(settings.results_url),
            "additional_connection_errors": NOT_NOW,
        },
        # Celery's own two minutes would keep a thread that stores a result when Redis is cut off
        "redis_socket_timeout": ANSWER_S,
        "redis_socket_connect_timeout": settings.connect_timeout_s,
        "redis_backend_health_check_interval": 10,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {
            **prefix,
            **_by_sentinels(settings.broker_url),
            # ten steps of priority within a queue, and Flower counts them all
            "priority_steps": list(STEPS),
            # strict tiers, whatever add_consumer did to the list before
            "queue_order_strategy": "gaelp_workers.dispatch:QueueOrder",
            # one try then an error: a caller must not hang on a dead broker
            "socket_timeout": ANSWER_S,
            "socket_connect_timeout": settings.connect_timeout_s,
            "health_check_interval": 10,
        },
        # nothing but JSON is read from the wire or from results
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # the acknowledgement after the run is what survives a kill; on threads it also wakes the event loop
        "task_acks_late": True,
        # 0 is no limit for Celery: the worker claims what it has room for
        "worker_prefetch_multiplier": 0,
        "worker_pool": "gaelp_workers.pool:TaskPool",
        "worker_consumer": "gaelp_workers.app:Consumer",
        "worker_concurrency": settings.num_parallel * len(settings.ollama_nodes),
        "beat_scheduler": "gaelp_beat.scheduler:Scheduler",
        "task_track_started": True,
        # Flower and `gaelp status` live on events; Celery sends none by default
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        "task_default_queue": Tier.INTERACTIVE.value,
        "task_queues": [_queue(name) for name in (*INBOXES, SYSTEM)],
        "task_routes": [
            {"gaelp.maintenance.*": {"queue": SYSTEM}, "gaelp.run_batch": {"queue": SYSTEM}},
            _route_foreign,
        ],
    }


def _by_sentinels(url: str) -> dict[str, Any]:
    """What Celery and kombu want to know beside a sentinel:// address."""
    found = sentinels(url)
    return {"master_name": found.master, "sentinel_kwargs": sentinel_options(found)} if found else {}


def _route_foreign(name: str, *_: Any, task: Any = None, **__: Any) -> dict[str, str] | None:
    """Where a task that is not of this app goes unless its signature names a queue.

    Callbacks and bodies of somebody else's chords are sent by our worker; its own default queue would lose
    them, while Celery's is where most services listen.
    """
    return None if task is not None or name.startswith("gaelp.") else {"queue": "celery"}


def _queue(name: str) -> Queue:
    """A queue with an exchange and a key of its own: Celery's default key would bind them all to one."""
    return Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]


app = GaelpApp()
