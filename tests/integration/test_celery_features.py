"""Celery stays Celery: what a service with plain celery may ask of our worker, feature by feature.

The calls are in support/service/calls.py and run in an environment without anything of ours; the service has
a worker of its own beside ours.
"""

import pytest

from gaelp_tasks import app
from support.eventually import eventually
from support.service_process import Service

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def service(plain_python, broker, worker, tmp_path_factory):
    service = Service(plain_python, broker.url, tmp_path_factory.mktemp("service"))
    with service.program("worker", "--pool=solo", "--hostname=service@test") as log:
        eventually(lambda: "ready." in log.read_text(), within_s=30, what="the service's own worker")
        yield service


def stop_reasons(outcomes):
    return [outcome["value"]["stop_reason"] for outcome in outcomes]


@pytest.fixture(scope="module")
def options(service):
    return service.calls("options")


@pytest.mark.parametrize(
    "name",
    ["countdown", "eta", "in time", "own id", "retry policy", "serializer", "headers", "by name"],
)
def test_an_option_of_a_call_is_celerys(options, name):
    assert options[name]["value"]["usage"]["completion_tokens"] == 5


def test_a_task_id_given_is_the_id_of_the_invocation(options):
    assert options["own id"]["value"]["id"] == "an-id-of-my-own"


def test_what_has_expired_is_revoked_as_celery_does(options):
    assert options["expired"] == {"error": "TaskRevokedError", "says": "expired"}


def test_the_soft_limit_is_a_deadline_and_the_hard_one_a_failure(options):
    assert options["soft limit"]["value"]["stop_reason"] == "deadline"
    assert options["soft limit"]["value"]["text"]
    assert options["hard limit"]["error"] == "TimeLimitExceeded"


def test_a_result_to_be_ignored_is_not_stored_and_still_streams(options):
    assert options["ignored is stored"] == [0, 0]


def test_vectors_come_from_plain_celery_too(options):
    assert len(options["embed"]["value"]["embeddings"]) == 2


@pytest.fixture(scope="module")
def canvas(service):
    return service.calls("canvas")


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("chain", "reasoning"),
        ("partial", "coding"),
        ("immutable", "chat"),
        ("chord, our body", "research"),
        ("linked", "chat"),
        ("replaced", "chat"),
    ],
)
def test_signatures_put_together_end_in_an_agent(canvas, name, agent):
    assert canvas[name]["value"]["agent"] == agent


def test_a_result_goes_on_to_tasks_of_other_services(canvas):
    assert canvas["chain through a foreign task"]["value"]["noted"]["stop_reason"] == "length"
    assert canvas["replaced in a chain"]["value"]["noted"]["stop_reason"] == "length"
    assert all(canvas["chord, foreign body"]["value"])
    assert len(canvas["chord of a group in a group"]["value"]["noted"]) == 3


def test_texts_go_on_to_vectors(canvas):
    assert len(canvas["chain into vectors"]["value"]["embeddings"]) == 1
    assert len(canvas["chord into vectors"]["value"]["embeddings"]) == 2


def test_a_group_answers_each(canvas):
    assert stop_reasons([{"value": value} for value in canvas["group"]["value"]]) == ["length"] * 3


def test_callbacks_of_both_kinds_are_called(canvas):
    [[noted, answered]] = [outcome["value"] for outcome in canvas["links"]]
    assert noted["noted"]["id"] == canvas["linked"]["value"]["id"]
    assert answered["stop_reason"] == "length"


def test_an_error_callback_hears_of_a_failure(canvas):
    assert canvas["failing"]["error"] == "ModelMissing"
    assert canvas["blamed"] is True


@pytest.mark.parametrize("name", ["map", "starmap", "chunks"])
def test_calls_inside_one_task_are_refused_with_the_way_to_go(canvas, name):
    assert canvas[name]["error"] == "InvalidInvocation"
    assert "group" in canvas[name]["says"]


@pytest.fixture(scope="module")
def cut(service):
    return service.calls("cut")


def test_nothing_in_a_chain_goes_on_from_a_cut_step_or_waits_for_it(cut):
    first = cut["first"]["value"]
    assert first["stop_reason"] == "deadline"
    for step in ("middle", "chain"):
        assert cut[step]["error"] == "InvocationCut"
        assert first["id"] in cut[step]["says"]


@pytest.mark.parametrize(
    "name", ["chord", "chord of chains", "chord of groups", "chord of chained groups", "chord of two cut"]
)
def test_a_chord_with_a_cut_member_fails_instead_of_waiting(cut, name):
    assert "was cut (deadline)" in cut[name]["says"]


def test_the_error_names_the_cut_member_whose_result_is_still_its_own(cut):
    assert cut["chord"]["error"] == "ChordError"
    assert "the-cut-one" in cut["chord"]["says"]
    assert cut["member"]["value"]["stop_reason"] == "deadline"
    assert cut["blamed"] is True


def test_no_callback_hears_of_a_cut_run(cut):
    assert cut["linked"]["value"]["text"]
    assert cut["the linked one ran"] is False


@pytest.fixture(scope="module")
def revoked(service):
    return service.calls("revoked")


@pytest.mark.parametrize("name", ["running", "several"])
def test_revoking_a_running_one_cancels_it_and_keeps_its_text(revoked, name):
    assert {*stop_reasons(revoked[name])} == {"cancelled"}
    assert all(outcome["value"]["text"] for outcome in revoked[name])


def test_revoking_a_group_cancels_each(revoked):
    assert stop_reasons([{"value": value} for value in revoked["grouped"]["value"]]) == ["cancelled"] * 2


def test_what_waits_for_its_time_is_cancelled_at_once(revoked):
    assert revoked["waiting for its time"]["value"]["stop_reason"] == "cancelled"


def test_revoking_by_a_stamp_cancels_what_runs_waits_and_is_yet_to_come(revoked):
    assert stop_reasons([revoked["stamped"], revoked["stamped later"]]) == ["cancelled"] * 2


def test_a_queued_one_that_is_revoked_ends_as_cancelled_and_never_as_revoked(revoked):
    assert revoked["not yet answered"] == ["PENDING"] * 4
    assert stop_reasons(revoked["queued"]) == ["cancelled"] * 4
    assert revoked["chained to a queued one"]["error"] == "InvocationCut"


def test_maintenance_is_revoked_celerys_way(revoked):
    assert revoked["maintenance"] == {"error": "TaskRevokedError", "says": "revoked"}


def test_inspect_lists_what_was_revoked(revoked):
    assert revoked["revoked"] == [True]


def test_revoking_what_has_ended_changes_nothing(revoked):
    assert revoked["done before"]["value"]["stop_reason"] == "length"


@pytest.fixture(scope="module")
def rules(service):
    return service.calls("rules")


def test_the_queue_sets_the_tier_and_of_two_the_lower_counts(rules):
    assert rules["tiers"] == {
        "queue alone": "background",
        "both": "background",
        "both, the other way": "batch",
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("argument", "colour"),
        ("value", "priority"),
        ("tier", "interactive, batch, background"),
        ("agent", "nobody"),
        ("nothing", "empty"),
        ("too many", "too many"),
        ("texts", "input"),
    ],
)
def test_bad_input_fails_with_one_sentence_and_without_a_retry(rules, worker, name, says):
    assert rules["bad"][name]["error"] == "InvalidInvocation"
    assert says in rules["bad"][name]["says"]
    assert rules["retried"] == []


def test_celerys_own_priority_strands_nothing(rules):
    assert rules["sub-keys"] == ["batch"] * 10


def test_a_foreign_beat_schedules_our_tasks_by_name(service):
    with service.program("beat", "--schedule=beat.db", "--max-interval=1") as log:
        tiers = eventually(lambda: set(beat_sent()), within_s=30, what=f"an invocation; see {log}")
    assert tiers == {"background"}


def beat_sent():
    """The tiers of what ran for the schedule, as its results tell; nothing else has its priority."""
    for key in app.redis.scan_iter(match="celery-task-meta-*"):
        result = app.backend.get_task_meta(key.removeprefix("celery-task-meta-"))["result"]
        if isinstance(result, dict) and result.get("priority") == 7:
            yield result["tier"]
