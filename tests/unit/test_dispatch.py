"""Which queue a worker takes from first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.redis import Channel

from gaelp_tasks.tasks.embed import embed
from gaelp_workers.dispatch import EMBEDS, Kind, QueueOrder, free, in_order, names_of, offer, takes

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


kinds = st.lists(st.sampled_from(Kind))


@given(kinds, st.integers(-3, 9), st.integers(0, 64))
def test_what_is_held_takes_its_own_kind_of_room_only(held, slots, seats):
    left = free(held, slots=slots, seats=seats)
    assert min(left) >= 0
    assert left.slots == max(0, slots - held.count(Kind.SLOT))
    assert left.seats == (max(0, seats - held.count(Kind.SEAT)) if slots > 0 else 0)
    assert left.errands == max(0, 4 - held.count(Kind.ERRAND)), "maintenance waits for no model"


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
    queues, groups = offer(["background", "interactive", "system", "celery"], models)
    served = [[name for name, group in zip(queues, groups, strict=True) if group == at] for at in range(4)]
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
