"""Which queue a worker takes from first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.redis import Channel

from gaelp_tasks.tasks.embed import embed
from gaelp_workers.dispatch import EMBEDS, Free, QueueOrder, free, in_order

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


@pytest.mark.parametrize(
    ("invocations", "embeddings", "slots", "seats", "room"),
    [
        (0, 0, 1, 1, 1),
        (1, 0, 1, 1, 0),  # the next may be an invocation
        (0, 1, 1, 1, 0),  # the next may be an embedding
        (0, 63, 1, 64, 1),
        (2, 62, 5, 64, 2),
        (4, 0, 4, 64, 0),
        (0, 0, 0, 64, 0),  # a pool that was shrunk to nothing takes nothing
        (6, 0, 2, 64, 0),  # and neither does one that runs more than it may now
        (0, 65, 1, 64, 0),
    ],
)
def test_the_next_message_is_taken_where_it_has_room_whatever_it_is(
    invocations, embeddings, slots, seats, room
):
    held = [EMBEDS] * embeddings + ["gaelp.invoke_agent"] * invocations
    assert free(held, slots=slots, seats=seats).for_any == room


@given(st.lists(st.sampled_from([EMBEDS, "gaelp.invoke_agent", "another.task"])), st.integers(0, 9))
def test_an_embedding_never_takes_a_slot_and_everything_else_does(held, slots):
    left = free(held, slots=slots, seats=64)
    assert left == Free(slots - len([name for name in held if name != EMBEDS]), 64 - held.count(EMBEDS))


def test_the_task_that_takes_a_seat_is_the_one_that_embeds():
    assert embed.name == EMBEDS


@pytest.mark.parametrize("name", ["consume", "update", "rotate"])
def test_kombu_still_asks_what_we_answer(name):
    assert hasattr(QueueOrder, name)
    assert Channel.queue_order_strategy == "round_robin"
