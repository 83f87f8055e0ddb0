"""Which queue, and which tier counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models import Tier
from gaelp_tasks.queues import INBOXES, SYSTEM, lower_tier, route, tier_of

tiers = st.sampled_from(Tier)
I, B, G = Tier.INTERACTIVE, Tier.BATCH, Tier.BACKGROUND  # noqa: E741  a table of three


def test_there_are_three_inboxes_highest_tier_first_and_maintenance_is_none_of_them():
    assert INBOXES == ("interactive", "batch", "background")
    assert [tier.rank for tier in Tier] == [0, 1, 2]
    assert SYSTEM not in INBOXES


@given(tiers)
def test_a_tier_and_its_queue_are_the_same_thing_both_ways(tier):
    assert tier_of(route(tier)) is tier


@pytest.mark.parametrize("name", ["system", "celery", "", "Interactive", "interactive ", "batch.llama3.2_3b"])
def test_other_queues_have_no_tier(name):
    assert tier_of(name) is None


@pytest.mark.parametrize(
    ("asked", "queue", "counts"),
    [
        (None, None, I),
        (None, "batch", B),
        (None, "background", G),
        (None, "elsewhere", I),
        (B, None, B),
        (G, "elsewhere", G),
        (I, "background", G),
        (G, "interactive", G),
        (B, "interactive", B),
        (B, "background", G),
        (B, "batch", B),
    ],
)
def test_of_tier_and_queue_the_lower_counts(asked, queue, counts):
    assert lower_tier(asked, queue) is counts


@given(tiers, tiers)
def test_nobody_jumps_a_queue_by_argument(asked, queue):
    counts = lower_tier(asked, route(queue))
    assert counts.rank == max(asked.rank, queue.rank)
    assert lower_tier(queue, route(asked)) is counts
