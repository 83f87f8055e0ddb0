"""Plain Celery: a no-op and a chat without us, with the same guarantees and the same telemetry."""

import json
import os
import threading
from functools import cache
from typing import Any

import redis
import requests
from celery import Celery

__all__ = ["URL_VARIABLE", "app", "chat", "noop"]

URL_VARIABLE = "BENCH_PLAIN_URL"
ANSWER_S = 60  #: for a model to say its next word
KEPT_S = 60  #: a stream, after its end

app = Celery("plain")
_here = threading.local()


@app.task(name="bench.noop")
def noop() -> None:
    pass


@app.task(name="bench.chat")
def chat(node: str, body: dict[str, Any], key: str | None = None) -> str:
    """Stream an answer, into Redis where somebody reads it."""
    pieces = []
    with _session().post(f"{node}/api/chat", json=body, stream=True, timeout=ANSWER_S) as response:
        response.raise_for_status()
        for line in response.iter_lines(chunk_size=None):
            chunk = json.loads(line)
            pieces.append(chunk["message"]["content"])
            if key is not None:
                _store().xadd(key, {"end": 1} if chunk["done"] else {"t": pieces[-1]})
    if key is not None:
        _store().expire(key, KEPT_S)
    return "".join(pieces)


def _session() -> requests.Session:
    """One of each thread."""
    if not hasattr(_here, "session"):
        _here.session = requests.Session()
        _here.session.trust_env = False
    return _here.session


@cache
def _store() -> redis.Redis:
    return redis.Redis.from_url(os.environ[URL_VARIABLE])


def _settings() -> dict[str, Any]:
    url = os.environ[URL_VARIABLE]
    return {
        "broker_url": url,
        "result_backend": url,
        "broker_connection_retry_on_startup": True,
        "task_acks_late": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "threads",
        "broker_transport_options": {"queue_order_strategy": "priority"},  # as --queues names them
        "task_track_started": True,
        "worker_send_task_events": True,
        "task_send_sent_event": True,
    }


app.add_defaults(_settings)
