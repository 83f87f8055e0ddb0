"""What a worker counts, and how it stands."""

from types import SimpleNamespace

import pytest
from celery.app.task import Context
from celery.exceptions import Reject, Retry

from gaelp_tasks import embed, invoke_agent
from gaelp_tasks.errors import NodeFailed
from gaelp_tasks.metrics import worker
from gaelp_tasks.metrics.page import Collected, Runs, new_page
from gaelp_tasks.metrics.series import MOST_MODELS, OTHER, WORKER
from gaelp_tasks.metrics.worker import Standing
from gaelp_tasks.models.ending import Ending
from gaelp_workers.metrics import Listening, is_retry
from support.metric_pages import parsed

RESULT = {
    "id": "i", "agent": "coding", "model": "m", "tier": "batch", "stop_reason": "stop",
    "usage": {"prompt_tokens": 7, "completion_tokens": 11},
    "timings": {"queued_s": 0.5, "load_s": None, "first_token_s": 0.25, "total_s": 2.0},
}  # fmt: skip


def end(**facts):
    return Ending(**{"id": "i", "task": "t", "state": "done", "tier": "batch", "agent": "chat"} | facts)


DONE = {
    "model": "m", "prompt_tokens": 7, "completion_tokens": 11, "queued_s": 0.5, "first_token_s": 0.25,
    "total_s": 2.0,
}  # fmt: skip


def test_only_what_spends_an_attempt_is_a_retry():
    def again(retries):
        return Retry(exc=NodeFailed("It broke."), when=1.0, sig=SimpleNamespace(options={"retries": retries}))

    assert is_retry(again(3), 2)
    assert not is_retry(again(2), 2)
    assert not is_retry(Reject("stopped: preemption"), 0)


def test_ends_are_counted_by_tier_agent_and_outcome_with_their_times_and_tokens():
    page = new_page()
    runs = Runs(lambda: ("chat", "embed"), page)
    before = parsed(page)
    assert before["gaelp_invocations_total", "batch", "chat", "done"] == 0, "a rate needs the first 0"
    for outcome in ("done", "done", "failed"):
        runs.ended(end(state=outcome, **DONE))
    runs.ended(end(agent="", state="cut"))
    runs.retried()
    found = parsed(page)
    assert found["gaelp_invocations_total", "batch", "chat", "done"] == 2
    assert found["gaelp_invocations_total", "batch", "chat", "failed"] == 1
    assert found["gaelp_invocations_total", "batch", "embed", "cut"] == 1
    assert (found["gaelp_tokens_total", "m", "prompt"], found["gaelp_tokens_total", "m", "completion"]) == (
        21,
        33,
    )
    assert found["gaelp_retries_total",] == 1
    for name, seconds in (("queue_wait", 0.5), ("first_token", 0.25), ("run", 2.0)):
        assert found[f"gaelp_{name}_seconds_count", "batch"] == 3
        assert found[f"gaelp_{name}_seconds_sum", "batch"] == pytest.approx(3 * seconds)


def test_an_agent_that_nobody_can_call_and_models_beyond_the_bound_are_other():
    page = new_page()
    runs = Runs(lambda: ("chat",), page)
    for number in range(MOST_MODELS + 3):
        runs.ended(end(agent=f"made up {number}", state="failed", model=f"m{number}", prompt_tokens=1))
    found = parsed(page)
    assert found["gaelp_invocations_total", "batch", OTHER, "failed"] == MOST_MODELS + 3
    assert found["gaelp_tokens_total", OTHER, "prompt"] == 3
    assert len({place[1] for place in found if place[0] == "gaelp_tokens_total"}) == MOST_MODELS + 1


class Counted:
    """What a worker counts."""

    def __init__(self):
        self.ends = []
        self.retries = 0

    def ended(self, end):
        self.ends.append(end)

    def retried(self):
        self.retries += 1


def told_to(listening, task, state, retval, **request):
    """As Celery tells that a run has ended, on its thread."""
    task.push_request(**({"id": "i", "retries": 0, "delivery_info": {"routing_key": "batch"}} | request))
    try:
        listening.on_end(sender=task, state=state, retval=retval)
    finally:
        task.pop_request()


def test_it_hears_of_every_end_once_and_of_no_other_task():
    counted = Counted()
    listening = Listening(counted)
    told_to(listening, invoke_agent, "SUCCESS", RESULT)
    told_to(listening, embed, "FAILURE", NodeFailed("It broke."))
    told_to(listening, invoke_agent, "SUCCESS", RESULT, gaelp_asked_again=True)
    told_to(listening, invoke_agent, "REJECTED", Reject("stopped: preemption"))
    told_to(listening, invoke_agent, "RETRY", Retry(when=1.0, sig=SimpleNamespace(options={"retries": 1})))
    listening.on_end(sender=object(), state="SUCCESS", retval=None)
    assert [(end.agent, end.tier, end.state) for end in counted.ends] == [
        ("coding", "batch", "done"),
        ("", "batch", "failed"),
    ]
    assert counted.retries == 1


def test_what_expired_unread_was_cut_and_what_was_revoked_ends_elsewhere():
    counted = Counted()
    listening = Listening(counted)
    request = Context(id="i", kwargs={"agent": "coding"}, delivery_info={"routing_key": "interactive.m"})
    for expired in (True, False):
        listening.on_revoked(sender=invoke_agent, request=request, expired=expired)
    assert [(end.agent, end.tier, end.state) for end in counted.ends] == [("coding", "interactive", "cut")]


def test_how_a_worker_stands_is_told_on_its_page():
    page = new_page()
    now = Standing("w@h", "0.1", 2, True, False, 1.5, 2.5, {"http://n": 64})
    gauges = [series for series in WORKER if series.kind == "gauge"]
    Collected(gauges, lambda: worker.samples(now), page)
    found = parsed(page)
    assert {place: value for place, value in found.items() if place[0].startswith("gaelp_")} == {
        ("gaelp_worker_info", "w@h", "0.1"): 1,
        ("gaelp_worker_runs",): 2,
        ("gaelp_worker_open",): 1,
        ("gaelp_claims_wanted",): 0,
        ("gaelp_claim_age_seconds",): 1.5,
        ("gaelp_progress_age_seconds",): 2.5,
        ("gaelp_memory_bytes", "http://n", "reserve"): 64,
    }
    assert ("process_resident_memory_bytes",) in found
