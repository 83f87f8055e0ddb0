"""Agents and their deployments: states, moves, what a version is made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gaelp_tasks.models.agent import (
    MOVES,
    TERMINAL,
    AgentChange,
    AgentSpec,
    AgentState,
    NewAgent,
    may_move,
)
from gaelp_tasks.models.deployment import DEPLOYMENT_MOVES, DeploymentState, may_become
from gaelp_tasks.models.limits import Limits, tightest
from gaelp_tasks.models.measurement import NewMetrics
from gaelp_tasks.models.stored import micro, units

SEED = {
    "name": "campaign-optimizer-v2",
    "type": "real_deployment",
    "docker_image": "gcr.io/gaelp/optimizer:v2.0",
    "resource_requirements": {"cpu": "4", "memory": "8Gi", "gpu": "1"},
    "budget_limit": 5000.0,
}

limits = st.builds(
    Limits,
    cost_per_run=st.none() | st.floats(0, 8e9),
    run_s=st.none() | st.floats(0.001, 1e6),
    output_tokens=st.none() | st.integers(1, 10**6),
    runs_per_hour=st.none() | st.integers(0, 10**6),
    models=st.none() | st.lists(st.sampled_from(["a", "b", "c"]), unique=True).map(tuple),
)


def reached(moves, start):
    found, new = set(), {start}
    while new:
        found |= new
        new = set().union(*(moves[state] for state in new)) - found
    return found


def test_the_seeds_agent_is_read_as_it_is_printed():
    new = NewAgent.model_validate(SEED)
    assert new.budget_micro == 5_000_000_000
    told = new.spec.model_dump(mode="json", exclude_unset=False)
    assert {name: told[name] for name in SEED} == SEED


def test_only_a_terminated_agent_is_over_for_good():
    assert {AgentState.TERMINATED} == TERMINAL
    assert reached(MOVES, AgentState.PENDING) == set(AgentState)
    assert all(may_move(state, AgentState.TERMINATED) for state in AgentState if state not in TERMINAL)
    assert not any(may_move(state, state) for state in AgentState)


def test_no_agent_becomes_pending_again_and_each_deployment_may():
    assert not any(AgentState.PENDING in moves for moves in MOVES.values())
    pending = DeploymentState.PENDING
    assert [one for one in DeploymentState if not may_become(one, pending)] == [pending]


def test_whatever_runs_can_be_stopped():
    assert reached(DEPLOYMENT_MOVES, DeploymentState.PENDING) == set(DeploymentState)
    assert all(may_become(one, DeploymentState.STOPPED) for one in DeploymentState if one != "stopped")


@given(st.integers(0, 8 * 10**15))
def test_money_is_told_and_read_without_a_loss(amount_micro):
    assert micro(units(amount_micro)) == amount_micro


@given(st.none() | st.integers(0, 8 * 10**15).map(units))
def test_a_version_reads_back_as_it_was_kept(budget):
    spec = NewAgent(
        **SEED | {"budget_limit": budget, "config": {"model": "m", "deep": [1, {"x": None}]}}
    ).spec
    assert AgentSpec.read(spec.kept()) == spec
    assert "budget_limit" not in spec.kept()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"name": ""}, {"name": " a"}, {"name": "a\0b"}, {"name": "a" * 201}, {"type": "simulator"}),
        *({"docker_image": "http://evil/x"}, {"docker_image": "a b"}, {"docker_image": "-x"}),
        *({"budget_limit": -1}, {"budget_limit": float("nan")}, {"budget_limit": 1e10}),
        *(
            {"environment": {"GAELP_X": "1"}},
            {"environment": {"hyperparam_x": "1"}},
            {"environment": {"1": "1"}},
        ),
        *({"config": {"a": "\0"}}, {"config": {"\0": 1}}, {"config": {"a": ["\ud800"]}}, {"config": [1]}),
        *({"config": {"a": "x" * 300_000}}, {"secrets": {"A": ""}}, {"secrets": {"A": "x" * 40_000}}),
        *(
            {"secrets": {"A": "1"}, "environment": {"A": "2"}},
            {"safety_policy": {"colour": 1}},
            {"colour": 1},
        ),
    ],
)
def test_what_no_agent_has_is_refused(wrong):
    with pytest.raises(ValidationError) as caught:
        NewAgent.model_validate(SEED | wrong)
    assert "x" * 100 not in str(caught.value)


@pytest.mark.parametrize("name", ["PATH", "ld_preload", "PYTHONPATH", "HOME"])
def test_a_variable_that_no_program_would_get_is_refused_by_its_name(name):
    new, change = NewAgent.model_validate, AgentChange.model_validate
    for refused in (
        lambda: new(SEED | {"environment": {name: "/x"}}),
        lambda: new(SEED | {"secrets": {name: "hush"}}),
        lambda: change({"environment": {name: "/x"}}),
    ):
        with pytest.raises(ValidationError, match=f"{name} would change which program runs"):
            refused()
    earlier = AgentSpec.read(new(SEED).spec.kept() | {"environment": {name: "/x"}})
    assert change({"description": "new"}).applied(earlier).environment == {name: "/x"}, "it can be read"


def test_a_secret_is_not_in_what_is_printed():
    new = NewAgent.model_validate(SEED | {"secrets": {"API_KEY": "hush-hush"}})
    assert "hush-hush" not in f"{new!r} {new} {new.model_dump_json()} {new.spec!r}"


def test_a_change_leaves_what_it_does_not_name_and_null_takes_away():
    before = NewAgent.model_validate(SEED | {"description": "old"}).spec
    after = AgentChange.model_validate({"description": None, "budget_limit": 1.5, "name": None}).applied(
        before
    )
    assert (after.description, after.budget_limit, after.name) == ("", 1.5, before.name)
    assert after.resource_requirements == before.resource_requirements
    assert AgentChange().applied(before) == before


@given(st.lists(st.none() | limits, max_size=4))
def test_the_tightest_of_limits_keeps_to_each_of_them(several):
    found = tightest(*several)
    for one in filter(None, several):
        for name in ("cost_per_run", "run_s", "output_tokens", "runs_per_hour"):
            if getattr(one, name) is not None:
                assert getattr(found, name) <= getattr(one, name)
        if one.models is not None:
            assert set(found.models) <= set(one.models)
    assert tightest(found, *several) == found


def test_numbers_beside_the_fields_are_values():
    new = NewMetrics.model_validate({"step": 3, "reward": 0.5, "loss": 1, "values": {"loss": 2}})
    assert (new.step, new.values) == (3, {"reward": 0.5, "loss": 2})


@pytest.mark.parametrize(
    "wrong",
    [
        *({}, {"step": 1}, {"reward": "high"}, {"reward": True}, {"reward": float("inf")}, {"1x": 1}),
        *({"values": {f"m{n}": n for n in range(65)}}, {"resources": {"cpu": -1}}, {"values": [1]}, []),
    ],
)
def test_what_is_no_metric_is_refused(wrong):
    with pytest.raises(ValidationError):
        NewMetrics.model_validate(wrong)
