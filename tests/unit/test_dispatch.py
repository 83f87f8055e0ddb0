"""Which queue a worker takes from first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.redis import Channel

from gaelp_workers.dispatch import QueueOrder, in_order

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


@pytest.mark.parametrize("name", ["consume", "update", "rotate"])
def test_kombu_still_asks_what_we_answer(name):
    assert hasattr(QueueOrder, name)
    assert Channel.queue_order_strategy == "round_robin"
