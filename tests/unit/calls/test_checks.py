"""A call is checked before anything is published."""

import pytest

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.registry import AGENTS
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.invoke import invoke_agent


@pytest.mark.parametrize(
    ("tier", "queue", "counts"),
    [
        (None, None, "interactive"),
        (None, "background", "background"),
        ("batch", None, "batch"),
        ("interactive", "background", "background"),
        ("background", "interactive", "background"),
        ("batch", "elsewhere", "batch"),
    ],
)
def test_queue_and_tier_settle_which_tier_counts(tier, queue, counts):
    assert invoke_agent.accept(["x"], {"tier": tier}, queue).tier == counts


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        (["a", "b"], {}, "too many"),
        ([], {"colour": "red"}, "colour"),
        (["a"], {"prompt": "b"}, "prompt"),
        ([], {}, "empty"),
        ([""], {}, "empty"),
        (["x"], {"agent": "poet"}, "chat, coding, reasoning, research"),
        (["x"], {"tier": "vip"}, "interactive, batch, background"),
        (["x"], {"tier": ["batch"]}, "interactive, batch, background"),
        (["x"], {"priority": 11}, "priority"),
    ],
)
def test_a_bad_call_is_refused_before_anything_is_published(post, args, kwargs, says):
    with pytest.raises(InvalidInvocation, match=says) as caught:
        invoke_agent.apply_async(args, kwargs)
    assert str(caught.value).endswith(".")
    assert post() == []


@pytest.mark.parametrize("field", ["tier", "agent"])
def test_a_prompt_given_in_the_wrong_place_is_not_repeated(field):
    with pytest.raises(InvalidInvocation) as caught:
        invoke_agent.accept(["x"], {field: "my SECRET\nprompt"}, None)
    assert "SECRET" not in str(caught.value)


def test_an_agent_registered_here_can_be_called(monkeypatch):
    monkeypatch.setitem(AGENTS.registered, "poet", type("Poet", (), {}))
    assert invoke_agent.accept(["x"], {"agent": "poet"}, None).agent == "poet"


def test_an_embedding_is_checked_too(post):
    assert embed.accept([["a", "b"]], {}, "batch").tier == "batch"
    with pytest.raises(InvalidInvocation):
        embed.delay([])
    with pytest.raises(InvalidInvocation):
        embed.delay("x", agent="chat")
    assert post() == []


@pytest.mark.parametrize("most_tokens", [0, -1, 1.5, True, "5"])
def test_a_bound_that_is_none_is_refused_at_the_call(post, most_tokens):
    with pytest.raises(InvalidInvocation, match="most_tokens"):
        invoke_agent.delay("Hi", most_tokens=most_tokens)
