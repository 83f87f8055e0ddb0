"""docs/control-plane.md says what the tables of the code say."""

import json
import re
from pathlib import Path

from gaelp_tasks.models.agent import MOVES, AgentFields, AgentType, NewAgent
from gaelp_tasks.models.deployment import DEPLOYMENT_MOVES
from gaelp_tasks.models.limits import Limits
from gaelp_tasks.models.policy import POLICIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/control-plane.md").read_text()


def rows_under(heading):
    """The rows of the first table under a heading, cell by cell."""
    part = re.split(r"\n#+ ", PAGE.partition(f"# {heading}\n")[2])[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines[2:]]


def named(cell):
    return set(re.findall(r"`([^`]+)`", cell))


def test_states_go_where_the_page_says():
    assert {named(row[0]).pop(): named(row[2]) for row in rows_under("States")} == {
        state.value: {to.value for to in moves} for state, moves in MOVES.items()
    }
    assert {named(row[0]).pop(): named(row[2]) for row in rows_under("Deployments")} == {
        state.value: {to.value for to in moves} for state, moves in DEPLOYMENT_MOVES.items()
    }


def test_policies_are_as_the_page_says():
    found = {named(row[0]).pop(): row for row in rows_under("Types and policies")}
    assert found.keys() == set(AgentType)
    for kind, policy in POLICIES.items():
        _, spends, environments, needs, limits = found[kind]
        assert spends.startswith("yes" if policy.spends else "no")
        assert ("stops" in spends) == policy.stops_at_limit
        assert re.findall(r"`([^`]+)`", environments) == [one.value for one in policy.environments]
        assert ("budget" in needs, "safety" in needs) == (policy.needs_budget, policy.needs_safety_policy)
        assert ("approval" in needs, "running" in needs) == (policy.needs_approval, policy.needs_deployment)
        for number in (policy.limits.output_tokens, policy.limits.runs_per_hour):
            assert number is None or f"{number:,}" in limits


def test_every_field_is_on_the_page():
    fields = set().union(*(named(row[0]) for row in rows_under("Agents")))
    assert fields == {"name", "type", "secrets", *AgentFields.model_fields}
    assert set().union(*(named(row[0]) for row in rows_under("Limits"))) == set(Limits.model_fields)


def test_the_example_is_the_agent_of_the_design_and_complete():
    example = json.loads((ROOT / "examples/agent-config.json").read_text())
    new = NewAgent.model_validate(example)
    assert (new.name, new.budget_limit) == ("campaign-optimizer-v2", 5000.0)
    assert new.resource_requirements.wire() == {"cpu": "4", "memory": "8Gi", "gpu": "1"}
    assert new.safety_policy.says_something
