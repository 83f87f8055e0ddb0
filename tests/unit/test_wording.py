"""Why runs wait on a node, in words."""

import math

import pytest

from gaelp_tasks.models.invocation import Tier
from gaelp_workers import controller
from gaelp_workers.decisions import Hold, HoldReason, Snapshot
from gaelp_workers.eviction import Run
from gaelp_workers.ledger import Footprint, Held, Phase
from gaelp_workers.thresholds import GIB, Limits
from gaelp_workers.wording import in_words

LIMITS = Limits()
TOTAL = 32 * GIB
FOOTPRINTS = {
    "big": Footprint(6 * GIB, GIB, 4),
    "one": Footprint(GIB, GIB, 1),
    "huge": Footprint(40 * GIB, 0, 1),
}
RUN = Run("r1", Tier.BATCH, 0.0)
SEEN = Snapshot(
    total_bytes=TOTAL,
    free_bytes=7 * GIB,
    resident={"one": 2 * GIB},
    loaded=frozenset({"one"}),
    failed=frozenset(),
    running={"one": (RUN,)},
    waiting={"big": (RUN,)},
    footprints=FOOTPRINTS,
)
LOADED = {"one": Held(Phase.LOADED, 2 * GIB, 0, 0.0, 0.0)}
STATE = controller.start(7 * GIB, 0.0)._replace(models=LOADED)


def words(reason, model="big", *, seen=SEEN, **models):
    state = STATE._replace(models={**LOADED, **models})
    return in_words(Hold(model, reason, None), seen, state, LIMITS)


@pytest.mark.parametrize("reason", HoldReason)
@pytest.mark.parametrize("model", ["big", "one", "nobodys"])
def test_every_reason_has_a_sentence(reason, model):
    said = words(reason, model)
    assert said[0].isupper() or said.startswith(model)
    assert said.endswith(".")
    assert "{" not in said
    assert "\n" not in said
    if reason is not HoldReason.VERIFYING and reason not in (HoldReason.HARD, HoldReason.CRITICAL):
        assert model in said


def test_every_reason_has_a_sentence_of_its_own():
    assert len({words(reason) for reason in HoldReason}) == len(HoldReason)


def test_what_is_needed_and_what_may_be_taken_are_told():
    for reason in (HoldReason.PUT_OFF, HoldReason.ROOM, HoldReason.MAKING_ROOM):
        # 1.5 times 6 + 4 GiB; 7 GiB are free, 2 of them are the reserve and 1.6 are 5 % of the node
        assert "needs 15.0 GiB, and 3.40 GiB may be taken here now" in words(reason)
    tight = SEEN._replace(free_bytes=GIB)
    state = STATE._replace(believed_bytes=GIB)
    assert "and 0 B may be taken" in in_words(Hold("big", HoldReason.ROOM, None), tight, state, LIMITS)


def test_what_never_fits_is_told_with_what_the_node_gives_models():
    said = words(HoldReason.TOO_BIG, "huge")
    assert "needs 60.0 GiB" in said
    assert "gives models 28.4 GiB" in said
    assert "gaelp plan huge" in said


def test_slots_are_counted():
    assert words(HoldReason.BUSY).startswith("All 4 slots of big are taken")
    assert words(HoldReason.BUSY, "one").startswith("The only slot of one is taken")


def test_a_load_tells_how_far_it_is_where_that_can_be_seen():
    loading = Held(Phase.LOADING, 15 * GIB, 0, 0.0, 600.0)
    assert words(HoldReason.LOADING, big=loading).endswith("with 15.0 GiB set aside for it.")
    seen = SEEN._replace(resident={"big": 4 * GIB})
    assert words(HoldReason.LOADING, seen=seen, big=loading).endswith("; 4.00 GiB are in memory.")


def test_who_makes_room_for_whom_is_told_to_both():
    draining = Held(Phase.DRAINING, 2 * GIB, 0, 0.0, 0.0, room_for="big")
    assert "one makes room for big" in words(HoldReason.DRAINING, "one", one=draining)
    assert "(1 now)" in words(HoldReason.DRAINING, "one", one=draining)
    assert "what runs on one ends first" in words(HoldReason.MAKING_ROOM, one=draining)


def test_how_long_higher_tiers_go_first_is_told_where_there_is_a_maximum():
    assert words(HoldReason.TIERS).endswith("keep what could make room, but for 600 s at the longest.")
    limits = LIMITS._replace(most_wait_s=math.inf)
    said = in_words(Hold("big", HoldReason.TIERS, None), SEEN, STATE, limits)
    assert said.endswith("keep what could make room.")


def test_short_memory_is_told_with_figures():
    assert "7.00 GiB of 32.0 GiB are free" in words(HoldReason.SOFT)
    assert "2.00 GiB are kept free" in words(HoldReason.HARD)
    assert "7.00 GiB of 32.0 GiB are free" in words(HoldReason.CRITICAL)
