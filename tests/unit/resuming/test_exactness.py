"""What may be gone on from, by itself: options, length, limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.agents import ChatAgent
from gaelp_tasks.models import Invocation, Message
from gaelp_tasks.tasks.resuming import Earlier, continued, fits, is_plain, options_left


def invocation(**asked):
    return Invocation.parse({"prompt": "Hi"} | asked, max_prompt_bytes=1000)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"temperature": 0, "seed": 1}, True),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "seed": 1}, False),
        ({"seed": 1}, False),
        ({"num_predict": 5}, True),
        ({"num_predict": -1}, True),
        ({"num_predict": True}, False),
        ({"num_predict": "5"}, False),
        ({"num_predict": 5.0}, False),
    ],
)
def test_with_a_seed_and_chance_the_dice_would_fall_again(options, plain):
    assert is_plain(invocation(options=options)) is plain


@pytest.mark.parametrize(
    ("text", "tokens", "num_ctx", "enough"),
    [("a" * 500, 100, 102, True), ("a" * 500, 100, 100, False), ("\U0001f331" * 20, 20, 90, True),
     ("\U0001f331" * 20, 20, 80, False), ("a", 4000, 0, True), ("a", 4096, 0, False)],
)  # fmt: skip
def test_what_may_be_as_long_as_the_context_does_not_surely_fit(text, tokens, num_ctx, enough):
    earlier = Earlier(first=1, text=text, tokens=tokens, last="1-1")
    assert fits(invocation(), earlier, ChatAgent, num_ctx) is enough


def test_an_image_is_not_plain():
    assert not is_plain(invocation(images=["aGk="]))


def test_the_text_stands_behind_what_the_caller_began_for_the_assistant():
    asked = invocation(
        prompt=None, messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He"}]
    )
    assert continued(asked.input, "llo")[-1] == Message(role="assistant", content="Hello")
    assert len(continued(asked.input, "llo")) == 2


@given(st.integers(-2, 30), st.integers(0, 30))
def test_what_is_left_of_a_limit_and_what_came_make_the_limit(limit, tokens):
    left = options_left({"num_predict": limit, "top_k": 1}, tokens)
    if limit <= 0:
        assert left == {"num_predict": limit, "top_k": 1}
    elif tokens >= limit:
        assert left is None
    else:
        assert left["num_predict"] + tokens == limit
        assert left["top_k"] == 1
