"""What models take and how many slots fit, against figures that were measured, and for every input."""

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gaelp_tasks.footprints import (
    KvMemoryModel,
    Layer,
    ModelShape,
    NaiveMemoryModel,
    Room,
    is_cut,
    memory_model,
    needed_bytes,
    read_shape,
    slots,
    unusual,
)
from support.shapes import GIB, LLAMA_1B, LLAMA_8B, MIB, MINILM, QWEN_7B, SMOLLM2, factors, kv, shape

MANY = 10**9


class Fixed:
    """A memory model of two numbers."""

    def __init__(self, shared_bytes, per_slot_bytes):
        self.shared_bytes, self.per_slot_bytes = shared_bytes, per_slot_bytes


# --- KV cache, as an engine's log told it ---------------------------------------------------------


@pytest.mark.parametrize(
    ("num_parallel", "num_ctx", "kv_cache_type", "mib"),
    [
        (1, 4096, "f16", 90),
        (2, 4096, "f16", 180),
        (4, 4096, "f16", 360),
        (4, 8192, "f16", 720),
        (4, 8192, "bf16", 720),
        (4, 8192, "q8_0", 382.5),
        (4, 8192, "q4_0", 202.5),
        (4, 8192, "f32", 1440),
    ],
)
def test_the_kv_cache_of_smollm2_is_what_the_engine_set_aside(num_parallel, num_ctx, kv_cache_type, mib):
    assert num_parallel * kv(SMOLLM2, num_ctx, kv_cache_type).per_slot_bytes == mib * MIB


@pytest.mark.parametrize(
    ("sizes", "architecture", "num_ctx", "batch_mib"),
    [(SMOLLM2, "llama", 4096, 18.64), (SMOLLM2, "llama", 8192, 22.64), (MINILM, "bert", 512, 7.26)],
)
def test_the_buffers_of_a_batch_are_within_a_hundredth_of_the_engines(
    sizes, architecture, num_ctx, batch_mib
):
    model = kv(sizes, num_ctx, architecture=architecture, embeds=architecture == "bert")
    process = 32 * MIB
    assert model.compute_bytes - process == pytest.approx(batch_mib * MIB, rel=0.01)


@pytest.mark.parametrize(
    ("sizes", "num_ctx", "gib"),
    [
        (LLAMA_8B, 4096, 0.5),
        (LLAMA_8B, 8192, 1),
        (LLAMA_8B, 131072, 16),
        (LLAMA_1B, 4096, 0.125),
        (LLAMA_1B, 131072, 4),
        (QWEN_7B, 8192, 0.4375),
        (QWEN_7B, 131072, 7),
    ],
)
def test_one_slot_of_known_models(sizes, num_ctx, gib):
    assert kv(sizes, num_ctx).per_slot_bytes == gib * GIB


@pytest.mark.parametrize(
    ("sizes", "weights_gib", "num_ctx", "naive", "right"),
    [
        (LLAMA_8B, 4.6, 4096, 3, 33),
        (LLAMA_8B, 4.6, 8192, 3, 16),
        (LLAMA_8B, 4.6, 32768, 3, 4),
        (LLAMA_8B, 4.6, 131072, 3, 1),
        (LLAMA_1B, 1.2, 4096, 15, 161),
        (LLAMA_1B, 1.2, 32768, 15, 20),
        (LLAMA_1B, 1.2, 131072, 15, 5),
        (QWEN_7B, 4.4, 8192, 4, 38),
        (QWEN_7B, 4.4, 131072, 4, 2),
    ],
)
def test_the_naive_formula_is_wrong_both_ways(sizes, weights_gib, num_ctx, naive, right):
    """24 GiB, 2 GiB reserve: naive with a factor of 1.2, against weights once (5 % more, and 0.5 GiB)."""
    weights = int(weights_gib * GIB)
    room = Room(free_bytes=24 * GIB, reserve_bytes=2 * GIB, safety_factor=1.2)
    assert slots(NaiveMemoryModel(model_bytes=weights), room, MANY) == naive
    once = Fixed(int(weights * 1.05) + GIB // 2, kv(sizes, num_ctx).per_slot_bytes)
    assert slots(once, Room(free_bytes=24 * GIB, reserve_bytes=2 * GIB, safety_factor=1), MANY) == right


def test_every_expert_that_a_token_uses_has_buffers_of_its_own():
    dense = shape(LLAMA_1B).compute_floats
    assert dense == 3 * 8192 + 5 * 2048
    experts = LLAMA_1B | {"expert_used_count": 8, "expert_feed_forward_length": 2048}
    assert shape(experts).compute_floats == 3 * 8 * 2048 + (5 + 2 * 8) * 2048
    shared = LLAMA_1B | {"expert_used_count": 1, "expert_feed_forward_length": 2048}
    assert shape(shared).compute_floats == 3 * 8192 + (5 + 2) * 2048, "dense layers are larger here"


# --- arithmetic, for every input ------------------------------------------------------------------


sizes_of_memory = st.integers(0, 2**50)
takes = st.integers(1, 2**45)


def rooms(free=sizes_of_memory, reserve=sizes_of_memory):
    return st.builds(Room, free_bytes=free, reserve_bytes=reserve, safety_factor=factors)


@given(takes, rooms())
def test_naive_is_the_formula_of_the_first_design_without_its_least_of_one(model_bytes, room):
    available = max(0, room.free_bytes - room.reserve_bytes)
    formula = math.floor(Fraction(available) / (model_bytes * Fraction(room.safety_factor)))
    assert slots(NaiveMemoryModel(model_bytes=model_bytes), room, 2**60) == formula


@given(st.integers(0, 2**45), takes, rooms(), st.integers(0, 2000))
def test_never_more_slots_than_fit_and_never_fewer(shared, per_slot, room, most):
    found = slots(Fixed(shared, per_slot), room, most)
    assert 0 <= found <= most

    def taken(count):
        return (shared + count * per_slot) * Fraction(room.safety_factor)

    if found:
        assert room.free_bytes - taken(found) >= room.reserve_bytes
    if found < most:
        assert room.free_bytes - taken(found + 1) < room.reserve_bytes


@given(st.integers(0, 2**45), takes, rooms())
def test_no_slot_at_or_below_the_reserve(shared, per_slot, room):
    assume(room.free_bytes <= room.reserve_bytes)
    assert slots(Fixed(shared, per_slot), room, MANY) == 0


@given(st.integers(0, 2**45), st.integers(0, 2**45), rooms(), sizes_of_memory)
def test_more_free_memory_is_never_fewer_slots_and_more_reserve_never_more(shared, per_slot, room, more):
    def count(free, reserve):
        changed = Room(free_bytes=free, reserve_bytes=reserve, safety_factor=room.safety_factor)
        return slots(Fixed(shared, per_slot), changed, MANY)

    now = count(room.free_bytes, room.reserve_bytes)
    assert count(room.free_bytes + more, room.reserve_bytes) >= now
    assert count(room.free_bytes, room.reserve_bytes + more) <= now


@given(st.integers(0, 2**45), takes, rooms(), st.integers(1, 100))
def test_what_a_load_needs_is_there_exactly_when_the_slots_fit(shared, per_slot, room, count):
    model = Fixed(shared, per_slot)
    fits = slots(model, room, MANY) >= count
    assert fits == (needed_bytes(model, count, room.safety_factor) <= room.usable_bytes)


def test_a_model_whose_slots_cost_nothing_runs_as_many_as_the_node_does():
    room = Room(free_bytes=2 * GIB, reserve_bytes=0, safety_factor=2)
    assert slots(Fixed(GIB, 0), room, 7) == 7
    assert slots(Fixed(GIB + 1, 0), room, 7) == 0
    assert slots(Fixed(0, 0), room, 7) == 0, "nothing is known of its size"


@pytest.mark.parametrize("factor", [0.99, 0.0, -1.0, math.nan])
def test_a_safety_factor_below_one_is_refused(factor):
    with pytest.raises(ValueError, match="must be 1 or more"):
        Room(free_bytes=1, reserve_bytes=0, safety_factor=factor)


@pytest.mark.parametrize(("factor", "words"), [(1.0, "more than was counted"), (2.1, "stays unused")])
def test_an_unusual_safety_factor_is_told_in_one_sentence(factor, words):
    assert words in unusual(factor)
    assert unusual(1.5) == unusual(2.0) == ""


# --- shapes ---------------------------------------------------------------------------------------


def test_layers_with_a_window_keep_the_window_and_a_batch_only():
    sizes = LLAMA_1B | {"block_count": 12, "attention.sliding_window": 1024}
    pattern = sizes | {"attention.sliding_window_pattern": [True] * 5 + [False]}
    a_token = 8 * 2 * 64 * 2
    whole, part = 32768 * a_token, (1024 + 512) * a_token
    assert kv(pattern, 32768).per_slot_bytes == 10 * part + 2 * whole
    assert kv(sizes, 32768, architecture="gemma3").per_slot_bytes == 10 * part + 2 * whole
    assert kv(sizes, 32768).per_slot_bytes == 12 * whole, (
        "nobody tells which layers: none is taken to be small"
    )
    assert kv(pattern, 512).per_slot_bytes == 12 * 512 * a_token
    assert (
        kv(pattern | {"attention.sliding_window": 1000}, 4096).per_slot_bytes
        == 10 * part + 2 * 4096 * a_token
    )
    period = sizes | {"attention.sliding_window_pattern": 2}
    assert kv(period, 32768).per_slot_bytes == 6 * part + 6 * whole


def test_recurrent_layers_keep_a_state_whatever_the_context():
    ssm = {"ssm.conv_kernel": 4, "ssm.inner_size": 5120, "ssm.state_size": 128, "ssm.group_count": 8}
    hybrid = LLAMA_1B | ssm | {"attention.head_count_kv": [0, 0, 0, 8] * 4}
    state = 4 * (3 * (5120 + 2 * 8 * 128) + 128 * 5120)
    for num_ctx in (4096, 8192):
        assert kv(hybrid, num_ctx).per_slot_bytes == 12 * state + 4 * num_ctx * 8 * 2 * 64 * 2
    interval = LLAMA_1B | ssm | {"full_attention_interval": 4}
    assert kv(interval, 4096, architecture="qwen3next").per_slot_bytes == kv(hybrid, 4096).per_slot_bytes
    assert [at for at, layer in enumerate(shape(interval, "qwen3next").layers) if layer.keys] == [
        3,
        7,
        11,
        15,
    ]
    no_heads = {name: size for name, size in LLAMA_1B.items() if "head" not in name}
    assert kv(no_heads | ssm, 4096, architecture="mamba2").per_slot_bytes == 16 * state
    short = LLAMA_1B | {"attention.head_count_kv": [0, 8] * 8, "shortconv.l_cache": 3}
    assert shape(short, "lfm2").layers[0] == Layer(0, 0, state_bytes=4 * 2 * 2048)


def test_heads_may_differ_by_layer_and_keys_from_values():
    sizes = LLAMA_1B | {"block_count": 3, "attention.head_count_kv": [1, 2, 3], "attention.key_length": 192}
    assert shape(sizes).layers == (Layer(192, 64), Layer(384, 128), Layer(576, 192))
    assert shape({**SMOLLM2, "attention.head_count_kv": None}).layers[0] == Layer(9 * 64, 9 * 64)


def test_an_encoder_keeps_nothing_and_embeds_one_call_at_a_time():
    found = shape(MINILM, "bert", embeds=True)
    assert found.alone
    model = memory_model(found, 512)
    assert isinstance(model, KvMemoryModel)
    assert model.per_slot_bytes == 0
    decoder = shape(LLAMA_1B, "qwen3", embeds=True)
    assert memory_model(decoder, 512).per_slot_bytes > 0


@pytest.mark.parametrize("architecture", ["mllama", "qwen3vlmoe", "qwen35", "lfm2", "nemotron_h_moe"])
def test_some_architectures_run_one_at_a_time(architecture):
    assert ModelShape(name="m", weights_bytes=1, architecture=architecture).alone
    assert not ModelShape(name="m", weights_bytes=1, architecture="llama").alone


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_count": 0},
        {"block_count": 10**6},
        {"block_count": "thirty"},
        {"block_count": None},
        {"attention.head_count_kv": -1},
        {"attention.head_count_kv": 2.5},
        {"attention.head_count_kv": [3] * 29},
        {"attention.head_count_kv": []},
        {"attention.head_count_kv": 0},
        {"attention.head_count_kv": True},
        {"embedding_length": None},
    ],
)
def test_what_makes_no_sense_leaves_the_naive_formula(wrong):
    found = shape(SMOLLM2 | wrong)
    assert found.layers == ()
    assert memory_model(found, 4096) == NaiveMemoryModel(model_bytes=GIB)


told_sizes = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**40),
    st.text(max_size=2),
    st.lists(st.integers(-2, 99), max_size=6),
)
some_names = st.sampled_from(
    [
        *LLAMA_1B,
        "ssm.state_size",
        "shortconv.l_cache",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "expert_used_count",
        "full_attention_interval",
    ]
)


@given(st.dictionaries(some_names, told_sizes))
def test_no_answer_of_a_server_makes_a_footprint_fail_or_negative(told):
    model = memory_model(shape(LLAMA_1B | told), 4096)
    assert model.per_slot_bytes >= 0
    assert model.shared_bytes >= 0


def test_without_any_shape_or_context_the_naive_formula_is_left():
    untold = read_shape("m", 5 * GIB, {}, family="llama")
    assert (untold.architecture, untold.layers) == ("llama", ())
    assert memory_model(untold, 4096) == NaiveMemoryModel(model_bytes=5 * GIB)
    assert memory_model(shape(SMOLLM2), 0) == NaiveMemoryModel(model_bytes=GIB)
    assert memory_model(shape(SMOLLM2), 4096, kind="naive") == NaiveMemoryModel(model_bytes=GIB)


@pytest.mark.parametrize("empty", [[], None])
def test_an_array_that_was_left_out_is_asked_for_again(empty):
    info = {"general.architecture": "llama", "tokenizer.ggml.tokens": empty}
    assert not is_cut(info)
    assert is_cut(info | {"llama.attention.head_count_kv": empty})
    assert not is_cut(info | {"llama.attention.head_count_kv": 0})


def test_the_context_is_what_is_asked_for_else_the_modelfiles_else_the_servers():
    found = shape(SMOLLM2, parameters='stop "num_ctx"\nnum_ctx                        2048\n')
    assert found.default_tokens == 2048
    assert [found.context(0, 4096), found.context(1024, 4096), found.context(10**6)] == [2048, 1024, 8192]
    assert shape(SMOLLM2).context(0, 4096) == 4096
