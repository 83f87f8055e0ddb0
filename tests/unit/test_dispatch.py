"""Which queue a worker takes from first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.redis import Channel

from gaelp_tasks.queues import SEPARATOR, TRAINING
from gaelp_tasks.tasks.embed import embed
from gaelp_workers.dispatch import (
    CLOSED,
    EMBEDS,
    JOBS,
    OTHERS,
    SHUT,
    Capacity,
    Held,
    Kind,
    QueueOrder,
    free,
    gains,
    in_order,
    names_of,
    offer,
    pool_of,
    takes,
)

STRICT = ["system", "interactive", "batch", "background"]


@given(st.permutations([*STRICT, "elsewhere", "another"]))
def test_the_order_is_strict_however_the_queues_were_added(queues):
    others = [name for name in queues if name not in STRICT]
    assert in_order(queues) == STRICT + others
    order = QueueOrder()
    order.update(queues)
    assert order.consume(len(queues)) == STRICT + others


@given(st.lists(st.sampled_from(STRICT), unique=True))
def test_only_what_is_consumed_is_taken_from(queues):
    assert in_order(queues) == [name for name in STRICT if name in queues]


@given(st.permutations(STRICT), st.integers(0, 6))
def test_up_to_count_queues_are_the_most_urgent_ones(queues, count):
    assert QueueOrder(queues).consume(count) == STRICT[:count]


@given(st.permutations(STRICT), st.sampled_from(STRICT))
def test_a_queue_just_served_does_not_lose_its_turn(queues, served):
    order = QueueOrder(queues)
    order.rotate(served)
    assert order.consume(4) == STRICT


def test_later_changes_replace_what_was_consumed():
    order = QueueOrder(["background"])
    order.update(["batch", "interactive"])
    assert order.consume(2) == ["interactive", "batch"]
    order.update([])
    assert order.consume(2) == []


pools = st.sampled_from(["", "a", "b", "gone"])
tasks = st.lists(st.builds(Held, st.just("id"), st.sampled_from(Kind), model=pools))
MODELS = {"a": "a", "b": "b", "c": "c"}
some = st.integers(-3, 9)


@given(tasks, some, some, some, st.integers(0, 64))
def test_what_is_held_takes_its_own_kind_of_room_in_its_own_pool_only(held, a, b, others, seats):
    left = free(held, Capacity({"a": a, "b": b}, MODELS, others, seats))
    slots = [MODELS.get(one.model, OTHERS) for one in held if one.kind is Kind.SLOT]
    for pool, count in (("a", a), ("b", b), (OTHERS, others), ("c", 0)):
        assert left.slots[pool] == (max(0, count - slots.count(pool)) if count > 0 else SHUT)
    kinds = [one.kind for one in held]
    assert left.seats == max(0, seats - kinds.count(Kind.SEAT))
    assert left.errands == max(0, 4 - kinds.count(Kind.ERRAND)), "maintenance waits for no model"
    assert next(iter(left.slots)) == OTHERS


def test_what_is_closed_has_room_for_nothing():
    assert not free([], CLOSED).some
    assert free([], Capacity({}, {}, 0, 0)).some, "maintenance runs on a node without slots"


def test_room_counts_as_gained_in_the_pool_where_it_appeared():
    def room(held=(), **slots):
        return free(held, Capacity(slots, {name: name for name in slots}, 1, 1))

    full = [Held("1", model="a")]
    assert gains(room(a=1), room(full, a=1))
    assert not gains(room(full, a=1), room(a=1))
    assert not gains(room(a=2), room(full, a=2)), "there was some before"
    assert gains(room(a=1, b=1), room(a=1)), "a model came"
    assert gains(room(a=1), room(a=0)), "its memory came"
    assert not gains(room(), room(a=1)), "a model has gone"
    assert gains(room(), free([], CLOSED))


def test_a_queue_takes_from_the_pool_of_its_model():
    models = {"m_1b": "m:1b", "any": "m:1b"}
    named = ("batch.m_1b", "interactive.any", "batch.unknown", "interactive", "system", "m_1b")
    assert [pool_of(queue, models) for queue in named] == ["m:1b", "m:1b", OTHERS, OTHERS, OTHERS, OTHERS]


@pytest.mark.parametrize(
    ("queue", "task", "kind"),
    [
        ("interactive.m", "gaelp.invoke_agent", Kind.SLOT),
        ("interactive.m", EMBEDS, Kind.SEAT),
        ("interactive", "my.task", Kind.SLOT),
        ("system", "gaelp.maintenance.x", Kind.ERRAND),
        ("system", EMBEDS, Kind.SEAT),
        ("celery", "my.task", Kind.SLOT),
    ],
)
def test_a_message_takes_what_its_task_needs(queue, task, kind):
    assert Kind.of(queue, task) is kind


def test_of_a_tier_its_inbox_and_the_queues_of_models_are_offered_before_the_next_tier():
    models = ["batch.b", "interactive.b", "interactive.any", "background.a"]
    queues, groups, _ = offer(["background", "interactive", "system", "celery"], models)
    served = [[name for name, group in zip(queues, groups, strict=True) if group == at] for at in range(1, 5)]
    assert served == [
        ["system"],
        ["interactive", "interactive.any", "interactive.b"],
        ["background", "background.a"],
        ["celery"],
    ]


def test_a_queue_of_a_model_may_be_consumed_alone():
    assert offer(["batch.m", "interactive"], ["interactive.m"]).queues[-1] == "batch.m"


@given(st.lists(st.sampled_from("abcde"), unique=True, min_size=1), st.integers(0, 99))
def test_the_queues_of_models_take_turns(names, turn):
    models = [f"batch.{name}" for name in names]
    firsts = {offer(["batch"], models, turn + at).queues[1] for at in range(len(models))}
    assert firsts == {*models}


def test_what_has_its_turn_leads_where_it_is_taken_from_at_all():
    first = ["background.a", "batch.a", f"batch.b{SEPARATOR}7", "batch.gone"]
    queues, groups, turns = offer(["batch"], ["batch.a", "batch.b", "background.a"], first=first)
    assert turns == 2
    assert queues[:turns] == ("batch.a", f"batch.b{SEPARATOR}7")
    assert {*groups[:turns]} == {0}
    assert {"batch.a", "batch.b"} < {*queues[turns:]}
    assert {*groups[turns:]} == {1}


def test_a_tier_without_calls_of_models_is_its_inbox_alone():
    assert offer(["batch"], [], 3).queues == ("batch",)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("llama3.2:3b", {"llama3.2_3b"}),
        ("llama3.2:latest", {"llama3.2", "llama3.2_latest"}),
        ("llama3.2", {"llama3.2", "llama3.2_latest"}),
    ],
)
def test_the_usual_tag_may_be_left_out(model, names):
    assert names_of([model]) == names


@pytest.mark.parametrize(
    ("queue", "taken"),
    [
        ("batch.mine", True),
        ("batch.both", True),
        ("batch.theirs", False),
        ("batch.nobodys", True),
        ("batch.any", True),
        ("batch.embed", True),
        ("batch", False),
        ("celery", False),
    ],
)
def test_a_node_takes_what_it_has_and_what_nobody_has(queue, taken):
    assert takes(queue, {"mine", "both"}, {"theirs", "both"}) is taken


def test_the_task_that_takes_a_seat_is_the_one_that_embeds():
    assert embed.name == EMBEDS


@pytest.mark.parametrize("name", ["consume", "update", "rotate"])
def test_kombu_still_asks_what_we_answer(name):
    assert hasattr(QueueOrder, name)
    assert Channel.queue_order_strategy == "round_robin"


def test_training_jobs_have_places_of_their_own():
    held = [Held("1", Kind.JOB), Held("2", Kind.JOB)]
    left = free(held, Capacity({"a": 2, JOBS: 3}, MODELS, 1, 1))
    assert (left.slots[JOBS], left.slots["a"], left.slots[OTHERS]) == (1, 2, 1)
    assert free(held, Capacity({"a": 2}, MODELS, 1, 1)).slots[OTHERS] == 1, "a worker that is told of none"
    assert free([], Capacity({JOBS: 0}, {}, 0, 0)).slots[JOBS] == SHUT
    assert pool_of(TRAINING, MODELS) == JOBS
    assert Kind.of(TRAINING, "gaelp.run_training_job") is Kind.JOB


def test_training_jobs_are_offered_last_and_only_where_maintenance_is_consumed():
    assert offer(STRICT, [], jobs=True).queues == (*STRICT, TRAINING)
    assert offer(STRICT, []).queues == tuple(STRICT)
    assert offer(["interactive"], [], jobs=True).queues == ("interactive",)
