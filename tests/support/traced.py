"""Runs as Celery tells of them, from its first signal to its last."""

from types import SimpleNamespace

from celery.app.task import Context

from gaelp_tasks.models.invocation import InvocationResult, Tier
from gaelp_tasks.models.usage import Timings, Usage
from gaelp_tasks.tasks.base import Reply

INVOKE, BATCH = "gaelp.invoke_agent", "gaelp.run_batch"
SENT = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "mine=1"}
NOW = 1000.0


def task(name=INVOKE, /, *, retries=0, headers=SENT, **arguments):
    """One of Celery's with a request of its own, as it stands when its run begins."""
    return SimpleNamespace(
        name=name,
        request=Context(
            id="an-id", task=name, args=[], kwargs=arguments, retries=retries, gaelp_claim=3,
            gaelp_published_at=NOW - 2.5, hostname="gaelp@one", is_eager=False,
            delivery_info={"routing_key": "batch.m"}, **headers,
        ),
    )  # fmt: skip


def answer(**changed):
    facts = {
        "id": "an-id", "agent": "coding", "model": "m:1b", "node": "http://n:1", "tier": Tier.BATCH,
        "priority": 8, "text": "SECRET", "stop_reason": "stop", "attempts": 2,
        "usage": Usage(prompt_tokens=5, completion_tokens=7),
        "timings": Timings(queued_s=2.5, load_s=2.0, first_token_s=3.0, total_s=4.0),
    }  # fmt: skip
    return Reply(InvocationResult(**(facts | changed)))


def run(hears, which, state, retval, inside=lambda: None):
    """A run from Celery's first signal to its last."""
    hears.on_begin(sender=which, task_id="an-id")
    try:
        inside()
    finally:
        hears.on_end(sender=which, state=state, retval=retval)
