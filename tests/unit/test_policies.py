"""Policies of the types of agents: whatever is asked, these promises hold."""

from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.errors import GaelpError
from gaelp_tasks.models.agent import USABLE, AgentState, AgentType
from gaelp_tasks.models.deployment import Environment
from gaelp_tasks.models.limits import Limits
from gaelp_tasks.models.policy import POLICIES, RULES, Act, Asked, decide

names = st.sampled_from(["ann", "bob", "cy"])
asked = st.builds(
    Asked,
    type=st.sampled_from(AgentType),
    caller=names,
    is_operator=st.booleans(),
    owner=names,
    state=st.sampled_from(AgentState),
    image_allowed=st.booleans(),
    budget_micro=st.none() | st.integers(0, 10),
    has_safety_policy=st.booleans(),
    environment=st.none() | st.sampled_from(Environment),
    raises_budget=st.booleans(),
    passes_by=st.booleans(),
    authors=st.frozensets(names),
    approved=st.booleans(),
    deployed=st.booleans(),
    model=st.none() | st.sampled_from(["a", "b"]),
    limits=st.builds(Limits, runs_per_hour=st.none() | st.integers(0, 3), models=st.none() | st.just(("a",))),
    runs_last_hour=st.integers(0, 4),
    no_move=st.sampled_from(["", "It cannot."]),
)


def test_each_type_has_a_policy_and_each_rule_a_name_of_its_own():
    assert POLICIES.keys() == set(AgentType)
    assert len({rule.name for rule in RULES}) == len(RULES)


@given(st.sampled_from(Act), asked)
def test_a_decision_says_which_rule_refuses_and_why(act, one):
    decision = decide(act, one)
    assert decision.allowed == (decision.rule == "") == (decision.why == "")
    if not decision.allowed:
        assert decision.why.endswith(".")
        assert "{" not in decision.why
        assert issubclass(decision.refusal, GaelpError)


@given(asked)
def test_a_simulation_agent_neither_spends_nor_comes_near_the_real_world(one):
    one = one._replace(type=AgentType.SIMULATION)
    assert not decide(Act.SPEND, one).allowed
    real = one._replace(environment=Environment.PRODUCTION)
    assert not any(decide(act, real).allowed for act in (Act.DEPLOY, Act.APPROVE, Act.START))


@given(asked)
def test_only_real_deployment_agents_reach_production(one):
    real = one._replace(environment=Environment.PRODUCTION)
    if decide(Act.DEPLOY, real).allowed or decide(Act.START, real).allowed:
        assert one.type is AgentType.REAL_DEPLOYMENT


@given(asked)
def test_a_real_deployment_starts_with_a_budget_a_safety_policy_and_an_approval(one):
    one = one._replace(type=AgentType.REAL_DEPLOYMENT)
    if decide(Act.START, one).allowed:
        assert one.budget_micro
        assert one.has_safety_policy
        assert one.approved
    if decide(Act.INVOKE, one).allowed:
        assert one.budget_micro
        assert one.has_safety_policy
        assert one.deployed


@given(asked)
def test_nobody_approves_what_is_of_his_own_making(one):
    if decide(Act.APPROVE, one).allowed:
        assert one.is_operator
        assert one.caller not in one.authors


@given(
    st.sampled_from([Act.CHANGE, Act.ROLL_BACK, Act.SET_SECRET, Act.MOVE, Act.TERMINATE, Act.DEPLOY]), asked
)
def test_an_agent_belongs_to_its_owner(act, one):
    if decide(act, one).allowed:
        assert one.is_operator or one.caller == one.owner


@given(asked)
def test_an_approved_budget_is_raised_by_another_operator(one):
    one = one._replace(raises_budget=True)
    if decide(Act.CHANGE, one).allowed:
        assert one.is_operator
        assert one.caller != one.owner


@given(st.sampled_from([Act.CHANGE, Act.ROLL_BACK]), asked)
def test_what_somebody_else_has_lowered_is_raised_by_an_operator(act, one):
    one = one._replace(passes_by=True)
    if decide(act, one).allowed:
        assert one.is_operator


@given(st.sampled_from([Act.INVOKE, Act.TRAIN, Act.START]), asked)
def test_what_is_not_usable_takes_nothing_new(act, one):
    if decide(act, one).allowed:
        assert one.state in USABLE


@given(asked)
def test_limits_hold_for_whoever_asks(one):
    if decide(Act.INVOKE, one).allowed:
        assert one.limits.runs_per_hour is None or one.runs_last_hour < one.limits.runs_per_hour
        assert one.limits.models is None or one.model in one.limits.models


@given(asked)
def test_a_terminated_agent_is_only_stopped_and_terminated(one):
    one = one._replace(state=AgentState.TERMINATED)
    allowed = {act for act in Act if decide(act, one).allowed}
    jobs = {Act.CANCEL, Act.PAUSE, Act.RESUME}  # which have a state of their own
    assert allowed <= {Act.REGISTER, Act.STOP, Act.TERMINATE} | jobs


@given(st.sampled_from([Act.MOVE, Act.APPROVE, Act.CANCEL, Act.PAUSE, Act.RESUME]), asked)
def test_what_no_table_of_states_has_is_refused_in_its_words(act, one):
    decision = decide(act, one._replace(no_move="It cannot."))
    assert not decision.allowed
    allowed = decide(act, one._replace(no_move=""))
    assert decision.why == ("It cannot." if allowed.allowed else allowed.why)
