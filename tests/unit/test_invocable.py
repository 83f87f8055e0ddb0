"""An invocation as its agent allows it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.agent import AgentType
from gaelp_tasks.models.invocable import Invocable
from gaelp_tasks.models.invocation import Invocation
from gaelp_tasks.models.limits import Limits


def invocable(**given):
    facts = {"agent_id": 1, "version": 1, "tenant": "", "owner": "ann", "type": AgentType.RESEARCH}
    return Invocable(**facts, spends=True, owners=(), **given)


def parsed(able, **given):
    return Invocation.parse(able.shaped(given), max_prompt_bytes=10_000)


def test_what_the_agent_says_comes_before_what_is_asked():
    able = invocable(agent="coding", model="a", options={"temperature": 0})
    found = parsed(able, prompt="hi", agent="chat", model="b", options={"temperature": 1, "seed": 3})
    assert (found.agent, found.model, found.options) == ("coding", "a", {"temperature": 0, "seed": 3})
    assert parsed(invocable(), prompt="hi", model="b").model == "b"


def test_its_own_system_prompt_is_first_and_the_only_one():
    able = invocable(system_prompt="Be kind.")
    found = parsed(able, prompt="hi", images=["aGk="])
    assert [(turn.role, turn.content) for turn in found.input] == [("system", "Be kind."), ("user", "hi")]
    assert found.input[1].images == ("aGk=",)
    turns = [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "hi"}]
    found = parsed(able, messages=turns)
    assert [turn.content for turn in found.input] == ["Be kind.", "hi"]


@pytest.mark.parametrize(
    "given", [{"prompt": "a", "messages": ["b"]}, {"prompt": 5}, {"options": [1]}, {}, {"prompt": " "}]
)
def test_what_is_no_invocation_is_refused(given):
    with pytest.raises(InvalidInvocation):
        parsed(invocable(system_prompt="Be kind."), **given)


@given(
    st.none() | st.integers(-2, 5000) | st.just(True) | st.just("many"),
    st.none() | st.floats(0.1, 1e5) | st.integers(1, 1000),
)
def test_no_run_goes_beyond_its_limits(tokens, deadline_s):
    able = invocable(limits=Limits(output_tokens=1000, run_s=60))
    options = {} if tokens is None else {"num_predict": tokens}
    found = parsed(able, prompt="hi", options=options, deadline_s=deadline_s)
    assert 0 < found.options["num_predict"] <= 1000
    assert 0 < found.deadline_s <= 60
