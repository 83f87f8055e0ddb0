"""What a node should have for its models: slots, a context, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.footprints import Room, in_words, plan_node, read_shape
from support.shapes import GIB, LLAMA_1B, LLAMA_8B, MIB, MINILM, factors, shape


def room(gib, factor=1.5):
    return Room(free_bytes=int(gib * GIB), reserve_bytes=2 * GIB, safety_factor=factor)


BIG = shape(LLAMA_8B, weights_bytes=int(4.6 * GIB), name="big")
SMALL = shape(LLAMA_1B, weights_bytes=int(1.2 * GIB), name="small")
EMBED = shape(MINILM, "bert", weights_bytes=44 * MIB, name="embed", embeds=True)


def test_slots_are_shared_out_so_that_all_models_stay_in_memory():
    found = plan_node([BIG, SMALL, EMBED], room(24), num_ctx=8192)
    assert (found.num_ctx, found.together) == (8192, True)
    assert sum(one.needed_bytes for one in found.models) <= 22 * GIB
    assert found.num_parallel == 6
    assert [one.num_parallel for one in found.models] == [6, 6, 1]
    assert "as asked for" in found.why[0]
    assert "all 3 models may stay in memory together" in found.why[1]
    assert found.models[0].kv_slots > found.models[0].num_parallel
    assert found.models[0].naive_slots == 3


def test_models_that_do_not_fit_together_take_turns():
    found = plan_node([BIG, SMALL], room(11), num_ctx=8192)
    assert (found.num_parallel, found.together) == (1, False)
    assert "take turns" in found.why[1]
    assert "big has no room for more" in found.why[1]


def test_a_context_is_halved_until_each_model_that_can_fit_has_a_slot():
    found = plan_node([BIG], room(24), num_ctx=131072)
    assert found.num_ctx == 65536
    assert found.models[0].kv_slots >= 1
    assert "with 131072 some model has no slot" in found.why[0]
    assert plan_node([BIG, SMALL], room(11), num_ctx=131072).num_ctx == 8192
    assert "no model here was trained for" in plan_node([BIG], room(90), num_ctx=500_000).why[0]


def test_what_fits_nowhere_is_told_and_keeps_nobody_from_the_rest():
    found = plan_node([BIG, SMALL], room(5), num_ctx=4096)
    assert [one.num_parallel > 0 for one in found.models] == [False, True]
    assert found.num_ctx == 4096
    assert any(sentence.startswith("big does not fit") for sentence in found.why)
    nothing = plan_node([BIG], room(1))
    assert (nothing.num_parallel, nothing.together) == (0, False)
    assert "no model fits" in nothing.why[1]


def test_never_more_than_eight_slots_are_advised():
    found = plan_node([SMALL], room(400))
    assert found.num_parallel == 8
    assert "more than 8" in found.why[-1]
    assert found.num_ctx == 4096, "Ollama's own"


def test_the_naive_model_decides_where_it_is_chosen():
    by_naive = plan_node([BIG], room(24), kind="naive")
    assert by_naive.num_parallel == by_naive.models[0].naive_slots == 3
    assert by_naive.models[0].kv_slots > 3


def test_models_of_one_run_at_a_time_and_of_unknown_shape_are_told():
    alone = shape(LLAMA_1B, "qwen3vl", name="eyes")
    untold = read_shape("untold", GIB, {})
    found = plan_node([alone, untold], room(24))
    assert [one.num_parallel for one in found.models] == [1, found.num_parallel]
    assert found.models[1].kv_slot_bytes is None
    words = " ".join(found.why)
    assert "Ollama runs qwen3vl one at a time" in words
    assert "untold: the server tells no shape of it" in words
    assert plan_node([alone, EMBED], room(24)).num_parallel == 1


def test_nothing_to_plan_for_is_a_plan_too():
    assert plan_node([], room(24)).num_parallel == 0


some = st.lists(st.sampled_from([BIG, SMALL, EMBED]), unique=True, min_size=1)


@given(some, st.integers(0, 80), st.sampled_from([0, 1000, 4096, 50_000, 131072]), factors)
def test_what_is_advised_fits(shapes, gib, num_ctx, factor):
    asked = Room(free_bytes=gib * GIB, reserve_bytes=2 * GIB, safety_factor=factor)
    found = plan_node(shapes, asked, num_ctx=num_ctx)
    for one in found.models:
        assert (one.num_parallel > 0) == (one.needed_bytes <= asked.usable_bytes)
        assert one.num_parallel <= one.kv_slots
    needed = sum(one.needed_bytes for one in found.models if one.num_parallel)
    assert found.together == (0 < needed <= asked.usable_bytes)
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in found.why)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (90 * MIB, "90.0 MiB"),
        (int(4.6 * GIB), "4.60 GiB"),
        (512 * GIB, "512 GiB"),
    ],
)
def test_sizes_in_words(size, words):
    assert in_words(size) == words
