"""What a call of `gaelp.embed` may look like, and what results hold."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models import Embedding, InvocationResult, Tier
from support.fakes import assert_one_sentence

LIMIT = 1000
NAN = math.nan

secrets = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=8, max_size=30)


@given(secret=secrets)
def test_an_error_about_texts_to_embed_never_repeats_them(secret):
    for wrong in ({"input": [secret, ""]}, {"input": [[secret]]}, {"input": secret, "priority": "x"}):
        with pytest.raises(InvalidInvocation) as caught:
            Embedding.parse(wrong, max_prompt_bytes=10_000)
        assert secret not in str(caught.value)
        assert_one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"input": ""},
        {"input": []},
        {"input": ["x", ""]},
        {"input": ["x", "  "]},
        {"input": [5]},
        {"input": 5},
        {"input": "x" * (LIMIT + 1)},
        {"input": ["x" * LIMIT, "x"]},
        {"input": ["x"] * 10_001},
        {"input": "x", "priority": True},
        {"input": "x", "tier": "vip"},
        {"input": "x", "agent": "chat"},
        {"input": "x", "metadata": {"a": NAN}},
    ],
    ids=lambda asked: str(asked)[:30],
)
def test_a_malformed_embedding_is_refused_in_one_sentence(asked):
    with pytest.raises(InvalidInvocation) as caught:
        Embedding.parse(asked, max_prompt_bytes=LIMIT)
    assert_one_sentence(str(caught.value))


def test_one_text_to_embed_counts_as_a_list_of_one_and_travels_as_json():
    asked = Embedding.parse({"input": "x" * LIMIT, "tier": "batch"}, max_prompt_bytes=LIMIT)
    assert asked.input == ("x" * LIMIT,)
    carried = json.loads(json.dumps(asked.wire()))
    assert Embedding.parse(carried, max_prompt_bytes=LIMIT) == asked
    assert "xx" not in asked.summary()


def test_a_result_has_the_fields_of_the_contract_and_what_came_later():
    result = InvocationResult(
        id="i", agent="chat", model="m", node="n", tier=Tier.BATCH, priority=5, text="t",
        stop_reason="stop", attempts=1,
    )  # fmt: skip
    mapping = result.model_dump(mode="json")
    assert mapping.keys() == {
        "id", "agent", "model", "node", "tier", "priority", "text", "tool_calls", "stop_reason", "attempts",
        "usage", "timings", "data", "cached",
    }  # fmt: skip
    assert mapping["usage"].keys() == {"prompt_tokens", "completion_tokens"}
    assert mapping["timings"].keys() == {"queued_s", "load_s", "first_token_s", "total_s"}


@pytest.mark.parametrize("stop_reason", ["shutdown", "eviction", "user", ""])
def test_a_result_has_no_other_stop_reason_than_those_of_the_contract(stop_reason):
    with pytest.raises(ValidationError):
        InvocationResult(
            id="i", agent="chat", model="m", node="n", tier=Tier.BATCH, priority=5, text="t",
            stop_reason=stop_reason, attempts=1,
        )  # fmt: skip
