"""Why who is queued waits, in words, and when it starts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models.capacity import MemorySnapshot, ModelSlots, NodeSnapshot
from gaelp_tasks.waiting import Waiting, expected, same, why_not_begun, why_queued

NOW = 1000.0
MEMORY = MemorySnapshot(total_bytes=2, free_bytes=1, source="test")


def node(*by_model, url="http://a:1", **facts):
    return NodeSnapshot(
        **{
            "worker": "w@h", "pid": 1, "url": url, "healthy": True, "slots": 4, "started_at": 1.0,
            "seen_at": NOW, "memory": MEMORY, "models": ("m:latest",), "by_model": by_model,
        }
        | facts
    )  # fmt: skip


def slots(count=2, *, model="m:latest", **facts):
    return ModelSlots(**{"model": model, "slots": count, "phase": "loaded"} | facts)


def waiting(position=1, *, queue="batch.m", higher=0, model="m", embeds=False):
    return Waiting(queue=queue, position=position, higher=higher, model=model, embeds=embeds)


@pytest.mark.parametrize(
    ("listed", "asked", "is_same"),
    [
        ("m:latest", "m", True),
        ("m", "m:latest", True),
        ("m:latest", "m_latest", True),
        ("llama3.2:1b", "llama3.2_1b", True),
        ("llama3.2:1b", "llama3.2", False),
        ("a/b:1b", "a_b_1b", True),
        ("m", "n", False),
    ],
)
def test_a_model_is_found_as_asked_for_and_as_queues_call_it(listed, asked, is_same):
    assert same(listed, asked) is is_same


# --- why it waits -------------------------------------------------------------------------------


def test_the_owner_s_own_words_count_most():
    why = "Memory is short: nothing starts."
    assert why_queued(waiting(3), [node(slots(0, why=why))]) == f"2 ahead of it in queue batch.m. {why}"


def test_who_is_taken_before_it_in_higher_tiers_is_told():
    said = why_queued(waiting(3, higher=4), [node(slots(2, busy=2))])
    assert said == "6 ahead of it, 4 of them in higher tiers; 2 of 2 slots of m are busy."


def test_only_its_own_model_counts():
    other = slots(8, model="n:latest", busy=8, why="All 8 slots of n are taken.")
    assert why_queued(waiting(), [node(slots(2, busy=1), other)]).endswith("; 1 of 2 slots of m are busy.")


def test_several_nodes_are_told_apart_where_they_differ():
    nodes = [node(slots(0, why="A.")), node(slots(0, why="B."), url="http://b:1")]
    assert why_queued(waiting(), nodes).endswith(". On http://a:1: A. On http://b:1: B.")
    same_words = [node(slots(0, why="A.")), node(slots(0, why="A."), url="http://b:1")]
    assert why_queued(waiting(), same_words).endswith("batch.m. A.")


@pytest.mark.parametrize(
    ("phase", "says"), [("loading", "being loaded"), ("draining", "gives way"), ("unloading", "unloaded")]
)
def test_a_phase_without_words_is_put_into_words(phase, says):
    assert says in why_queued(waiting(), [node(slots(0, phase=phase))])
    assert says in why_queued(waiting(), [node(slots(2, busy=1, phase=phase))]), "a free slot is no reason"
    assert says in why_not_begun("m", [node(slots(0, phase=phase))])


def test_a_model_that_is_not_in_memory_is_said_to_be_so():
    assert "m is not in memory yet." in why_queued(waiting(), [node(slots(2, model="n"))])


def test_a_model_that_no_node_has_is_told_with_what_to_do():
    said = why_queued(waiting(model="x:1b", queue="batch.x_1b"), [node(slots())])
    assert said == "No node has model x:1b: `gaelp models pull x:1b` fetches it."


def test_a_node_that_says_nothing_of_its_models_may_have_it():
    silent = node(url="http://b:1", healthy=False, models=(), trouble="http://b:1 hangs.")
    assert why_queued(waiting(model="x"), [node(), silent]).endswith(" http://b:1 hangs.")


def test_a_model_that_only_closed_or_unwell_nodes_have_is_told():
    cordoned = node(worker="c@h", closed="cordoned", models=("x:latest",))
    said = why_queued(waiting(model="x", queue="batch.x"), [node(), cordoned])
    assert said.startswith("Who has x takes nothing new: c@h (cordoned).")
    unwell = node(healthy=False, models=("x:latest",), trouble="http://a:1 hangs.")
    said = why_queued(waiting(model="x", queue="batch.x"), [node(), unwell])
    assert said == "No node that could run it is well. http://a:1 hangs."


def test_a_call_that_names_no_model_counts_all_slots():
    nodes = [node(slots(2, busy=2, why="All taken."), slots(1, model="n")), node(url="http://b:1")]
    anybody = waiting(queue="batch.any", model="")
    assert why_queued(anybody, nodes) == "0 ahead of it in queue batch.any; 0 of 8 slots are busy."
    assert why_queued(anybody, [node(slots(2, busy=2, why="All taken."))]).endswith("batch.any. All taken.")


def test_who_was_taken_waits_only_while_its_model_is_not_in_memory():
    loading = slots(2, phase="loading", why="m is being loaded, with 2 GiB set aside for it.")
    assert why_not_begun("m", [node(loading)]) == loading.why
    assert why_not_begun("", [node(loading)]) == loading.why
    assert why_not_begun("n", [node(loading)]) == ""
    assert why_not_begun("m", [node(slots(2, why="All 2 slots of m are taken."))]) == ""


# --- when it starts -----------------------------------------------------------------------------


def test_a_free_slot_is_taken_at_once():
    found = expected(waiting(2), [node(slots(4, busy=2))], NOW)
    assert (found.start_in_s, found.ahead, found.slots, found.busy) == (0.0, 1, 4, 2)


def test_who_is_ahead_the_slots_and_the_mean_of_runs_make_the_estimate():
    nodes = [node(slots(2, busy=2, run_s=10.0)), node(slots(2, busy=2, run_s=30.0), url="http://b:1")]
    found = expected(waiting(3, higher=1), nodes, NOW)
    assert (found.start_in_s, found.run_s) == (20.0, 20.0), "4 have to end first, 4 at once, 20 s each"
    assert found.how == "4 runs have to end first, 4 at once, 20.0 s each on the mean"


def test_runs_of_lower_tiers_give_way_to_it_and_to_who_is_ahead():
    full = [node(slots(4, busy=4, run_s=10.0))]
    assert expected(waiting(2)._replace(lower=2), full, NOW).start_in_s == 0.0
    assert expected(waiting(2)._replace(lower=1), full, NOW).start_in_s == 2.5


def test_before_any_run_has_ended_nobody_can_tell():
    found = expected(waiting(), [node(slots(1, busy=1))], NOW)
    assert (found.start_in_s, found.how) == (None, "no run of its model has ended here yet")


def test_without_a_slot_the_time_counts_at_which_that_may_change():
    held = slots(0, until=NOW + 12, run_s=5.0)
    assert expected(waiting(), [node(held)], NOW).start_in_s == 12.0
    assert expected(waiting(3), [node(held)], NOW).start_in_s == 22.0
    assert expected(waiting(), [node(held)], NOW + 60).start_in_s == 0.0
    assert expected(waiting(), [node(slots(0, run_s=5.0))], NOW).start_in_s is None
    assert expected(waiting(3), [node(slots(0, until=NOW + 12))], NOW).start_in_s is None


@pytest.mark.parametrize(
    "nodes", [[], [node(closed="cordoned")], [node(healthy=False)], [node(models=("n:latest",))]]
)
def test_where_nobody_takes_it_nobody_can_tell(nodes):
    assert expected(waiting(), nodes, NOW).start_in_s is None


def test_an_embedding_is_not_estimated():
    assert expected(waiting(embeds=True), [node(slots(4))], NOW).start_in_s is None


def test_a_node_of_an_earlier_release_tells_all_models_together():
    old = node(slots=2, running=("r", "s"))
    assert why_queued(waiting(), [old]).endswith("; 2 of 2 slots of m are busy.")
    assert expected(waiting(), [node(slots=2)], NOW).start_in_s == 0.0


counts = st.integers(0, 20)


@given(
    position=st.integers(1, 50), higher=counts, of_it=st.integers(1, 20), busy=counts, run_s=st.floats(0, 1e4)
)
def test_the_estimate_grows_with_who_is_ahead_and_shrinks_with_the_slots(
    position, higher, of_it, busy, run_s
):
    def start_in_s(ahead=position, count=of_it, taken=busy):
        nodes = [node(slots(count, busy=taken, run_s=run_s))]
        return expected(waiting(ahead, higher=higher), nodes, NOW).start_in_s

    told = start_in_s()
    assert told >= 0
    assert (told == 0) or (position + higher + busy > of_it)
    assert start_in_s(ahead=position + 1) >= told
    assert start_in_s(taken=busy + 1) >= told
    assert start_in_s(count=of_it + 1) <= told
