"""The owners of a worker's nodes together: names of queues, what is let in, memory that nodes share."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models.capacity import MemorySnapshot
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.settings import Settings
from gaelp_workers.known import Waiting
from gaelp_workers.owners import allowed, names_of_pools, names_of_queues, queued
from gaelp_workers.sight import Queued, less

URLS = ("http://a:1", "http://b:1")


def at(*, well=(True, True), **settings: Any) -> Any:
    nodes = [
        SimpleNamespace(url=url, well=fine, models=models)
        for url, fine, models in zip(
            URLS, well, [("chat:1b", "vectors:latest"), ("chat:1b", "other:latest")], strict=True
        )
    ]
    return SimpleNamespace(
        nodes=nodes,
        settings=Settings(**settings),
        shares=lambda limit: [limit // 2, limit - limit // 2],
        now=lambda: 1000.0,
        tick=lambda: 10.0,
    )


def owner(capacity: dict[str, int] | None, *embeds: str, hopeless: frozenset[str] = frozenset()) -> Any:
    footprints = SimpleNamespace(embeds=embeds.__contains__)
    return SimpleNamespace(capacity=capacity, footprints=footprints, hopeless=hopeless)


def test_what_is_let_in_is_the_sum_over_the_nodes_that_are_well():
    owners = {URLS[0]: owner({"chat:1b": 2}), URLS[1]: owner({"chat:1b": 1, "other:latest": 0})}
    assert allowed(at(), owners, 4) == {"chat:1b": 3, "other:latest": 0}
    assert allowed(at(well=(True, False)), owners, 4) == {"chat:1b": 2}
    assert allowed(at(well=(False, False)), owners, 4) == {"chat:1b": 3, "other:latest": 0}


def test_a_share_that_was_lowered_counts_before_the_owner_has_looked_again():
    owners = {url: owner({"chat:1b": 4, "vectors:latest": 64}, "vectors:latest") for url in URLS}
    assert allowed(at(), owners, 2) == {"chat:1b": 2, "vectors:latest": 128}
    assert allowed(at(), owners, 0) == {"chat:1b": 0, "vectors:latest": 0}


def test_a_node_of_which_nothing_is_known_yet_gives_each_model_its_share():
    owners = {URLS[0]: owner(None), URLS[1]: owner({})}
    assert allowed(at(), owners, 5) == {"chat:1b": 2, "vectors:latest": 2}


def test_a_queue_that_names_no_model_is_the_first_one_s_that_can_do_it():
    owners = {url: owner({}, "vectors:latest") for url in URLS}
    names = names_of_queues(at(), owners)
    assert (names["any"], names["embed"]) == ("chat:1b", "vectors:latest")
    assert names["other"] == names["other_latest"] == "other:latest"
    chosen = names_of_queues(at(default_model="other", embed_model="chat:1b"), owners)
    assert (chosen["any"], chosen["embed"]) == ("other:latest", "chat:1b")


def test_what_waits_is_told_by_this_process_own_clock():
    waiting = {
        "batch.chat_1b": Waiting(3, 990.0, 995.0, "batch.chat_1b"),
        "interactive.nobodys": Waiting(1, None, 995.0, "interactive.nobodys"),
        "system": Waiting(1, None, 995.0, "system"),
    }
    known: Any = SimpleNamespace(waiting=waiting)
    assert queued(at(), {}, known) == [Queued("chat:1b", Tier.BATCH, 3, 0.0)]


@given(free=st.integers(0, 2**40), to_come=st.integers(0, 2**40))
def test_loads_of_another_node_of_the_machine_are_counted_once_and_never_below_zero(free, to_come):
    memory = MemorySnapshot(total_bytes=2**41, free_bytes=free, source="host")
    assert less(memory, to_come).free_bytes == max(0, free - to_come)
    budget = memory.model_copy(update={"source": "budget"})
    assert less(budget, to_come) == budget


def test_what_no_node_can_ever_load_has_no_pool_of_its_own():
    """It runs among what no node has, to be told why."""
    never = frozenset({"other:latest"})
    one, both = (
        {URLS[0]: owner({}, hopeless=first), URLS[1]: owner({}, hopeless=never)}
        for first in (frozenset[str](), never)
    )
    assert names_of_pools(at(), one)["other"] == "other:latest"
    assert "other" not in names_of_pools(at(), both)
    assert names_of_queues(at(), both)["other"] == "other:latest"
