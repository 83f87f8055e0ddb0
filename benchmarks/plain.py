"""The no-op on plain Celery: what it costs without us, with the same guarantees and the same telemetry."""

import os
from typing import Any

from celery import Celery

__all__ = ["URL_VARIABLE", "app", "noop"]

URL_VARIABLE = "BENCH_PLAIN_URL"

app = Celery("plain")


@app.task(name="bench.noop")
def noop() -> None:
    pass


def _settings() -> dict[str, Any]:
    url = os.environ[URL_VARIABLE]
    return {
        "broker_url": url,
        "result_backend": url,
        "broker_connection_retry_on_startup": True,
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "threads",
        "task_track_started": True,
        "worker_send_task_events": True,
        "task_send_sent_event": True,
    }


app.add_defaults(_settings)
