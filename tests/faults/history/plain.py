"""Plain Celery, by the book for those who must not lose tasks: `celery -A faults.history.plain worker`."""

import os
from typing import Any

from celery import Celery

from faults.history.probes import PROBE, probe

URL = "HISTORY_URL"  #: where its Redis is
VISIBILITY_S = 5  #: longer than any task of a run, short enough to see the end of one


def by_the_book() -> dict[str, Any]:
    """Late acknowledgement, no prefetch to speak of; and a sweep each second in place of Celery's 100 s."""
    url = os.environ[URL]
    return {
        "broker_url": url,
        "result_backend": url,
        "broker_connection_retry_on_startup": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_S,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
    }


app = Celery("plain", set_as_current=False)
app.add_defaults(by_the_book)
app.task(bind=True, name=PROBE)(probe)
