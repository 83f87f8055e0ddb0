"""What each type of agent may do: policies and rules as data, and the decision they come to. Pure.

`decide` goes through RULES in their order; the first one that is broken refuses, and says why.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from gaelp_tasks.errors import Conflict, GaelpError, NotAllowed, PolicyViolated
from gaelp_tasks.models.agent import TERMINAL, USABLE, AgentState, AgentType
from gaelp_tasks.models.deployment import Environment
from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.limits import Limits

__all__ = ["POLICIES", "RULES", "Act", "Asked", "Decision", "Policy", "Rule", "decide"]


class Act(StrEnum):
    """What is decided about."""

    REGISTER = "register"
    CHANGE = "change"
    ROLL_BACK = "roll back"
    SET_SECRET = "set secret"  # noqa: S105  an act, no secret
    REMOVE_SECRET = "remove secret"  # noqa: S105  as above
    SET_BUDGET = "set budget"  #: itself, beside what its versions say
    MOVE = "move"
    TERMINATE = "terminate"
    DEPLOY = "deploy"
    APPROVE = "approve"
    WITHDRAW = "withdraw approval"  #: nobody asks for it: it follows from a change
    START = "start"
    STOP = "stop"
    INVOKE = "invoke"
    TRAIN = "train"
    SPEND = "spend"
    RECORD = "record"  #: metrics
    CANCEL = "cancel"  #: a training job, as the next two
    PAUSE = "pause"
    RESUME = "resume"


class Policy(Frozen):
    """Of one type of agent."""

    spends: bool  #: of a budget of its own; who calls or trains it pays in any case
    environments: tuple[Environment, ...]  #: where it may be deployed, the usual one first
    needs_budget: bool = False  #: to be deployed, called or trained
    needs_safety_policy: bool = False  #: to be deployed or called
    needs_approval: bool = False  #: of each deployment, by an operator who is not its author
    needs_deployment: bool = False  #: a running one, to be called
    stops_at_limit: bool = False  #: its deployments stop, and it pauses, once its budget is spent
    logs_everything: bool = False  #: each decision about it is logged, too
    limits: Limits = Limits()  #: what none of this type goes beyond, whatever it declares


_E = Environment
POLICIES: dict[AgentType, Policy] = {
    AgentType.SIMULATION: Policy(spends=False, environments=(_E.SIMULATION,)),
    AgentType.REAL_DEPLOYMENT: Policy(
        spends=True,
        environments=(_E.PRODUCTION, _E.STAGING),
        needs_budget=True,
        needs_safety_policy=True,
        needs_approval=True,
        needs_deployment=True,
        stops_at_limit=True,
        logs_everything=True,
    ),
    AgentType.EVALUATION: Policy(
        spends=True,
        environments=(_E.SIMULATION, _E.STAGING),
        limits=Limits(run_s=3600, output_tokens=32_768, runs_per_hour=3600),
    ),
    AgentType.RESEARCH: Policy(
        spends=True,
        environments=(_E.SIMULATION, _E.STAGING),
        limits=Limits(run_s=86_400, output_tokens=131_072, runs_per_hour=36_000),
    ),
}


class Asked(NamedTuple):
    """The facts that a decision rests on; what an act does not look at may be left out."""

    type: AgentType
    caller: str
    is_operator: bool
    owner: str  #: of the agent; of the job where it is about one
    state: AgentState = AgentState.PENDING
    image_allowed: bool = True
    budget_micro: int | None = None  #: None: it has no budget
    has_safety_policy: bool = False
    environment: Environment | None = None
    raises_budget: bool = False  #: above what somebody has approved, or is to approve
    passes_by: bool = False  #: above what somebody else than its owner has set its budget to
    authors: frozenset[str] = frozenset()  #: of all that would be deployed, its secrets too
    approved: bool = False
    deployed: bool = False  #: one of its deployments runs
    model: str | None = None  #: that is to be called; None: the node's default
    limits: Limits = Limits()  #: all of them together
    runs_last_hour: int = 0
    no_move: str = ""  #: a sentence where the table of states has no such move; '' where it has

    @property
    def policy(self) -> Policy:
        """Of its type."""
        return POLICIES[self.type]


class Rule(NamedTuple):
    """One reason to refuse."""

    name: str
    acts: frozenset[Act]
    holds: Callable[[Asked], bool]
    why: str  #: it is refused; the fields of what was asked may stand in it
    refusal: type[GaelpError] = PolicyViolated


_OWNED = frozenset(Act) - {Act.REGISTER, Act.APPROVE, Act.INVOKE, Act.SPEND}
_OF_JOBS = frozenset({Act.CANCEL, Act.PAUSE, Act.RESUME})
_LIVE = frozenset(Act) - {Act.REGISTER, Act.TERMINATE, Act.STOP} - _OF_JOBS  #: of what is not over
_GO = frozenset({Act.START, Act.INVOKE})

RULES: tuple[Rule, ...] = (
    Rule(
        "owner",
        _OWNED,
        lambda one: one.is_operator or one.caller == one.owner,
        "Only its owner {owner} or an operator may do this.",
        NotAllowed,
    ),
    Rule(
        "operator",
        frozenset({Act.APPROVE}),
        lambda one: one.is_operator,
        "Only operators approve.",
        NotAllowed,
    ),
    Rule("terminated", _LIVE, lambda one: one.state not in TERMINAL, "The agent is terminated.", Conflict),
    Rule(
        "state",
        frozenset({Act.INVOKE, Act.TRAIN, Act.START}),
        lambda one: one.state in USABLE,
        "The agent is {state}: it takes nothing new until it is running again.",
        Conflict,
    ),
    Rule(
        "raised budget",
        frozenset({Act.CHANGE, Act.ROLL_BACK, Act.SET_BUDGET}),
        lambda one: not one.raises_budget or (one.is_operator and one.caller != one.owner),
        "What was approved with a smaller budget gets a larger one by an operator who is not its owner.",
    ),
    Rule(
        "lowered budget",
        frozenset({Act.CHANGE, Act.ROLL_BACK}),
        lambda one: not one.passes_by or one.is_operator,
        "Somebody else has set the agent's budget to less: an operator raises it again.",
    ),
    Rule(
        "image",
        frozenset({Act.REGISTER, Act.CHANGE, Act.ROLL_BACK, Act.TRAIN}),
        lambda one: one.image_allowed,
        "Its docker_image is not among those that GAELP_TRAINING_IMAGES allows.",
    ),
    Rule(
        "environment",
        frozenset({Act.DEPLOY, Act.APPROVE, Act.START}),
        lambda one: one.environment in one.policy.environments,
        "A {type} agent is not deployed into {environment}.",
    ),
    Rule(
        "four eyes",
        frozenset({Act.APPROVE}),
        lambda one: one.caller not in one.authors,
        "Nobody approves what is of his own making: another operator must.",
    ),
    Rule(
        "larger budget",
        frozenset({Act.APPROVE}),
        lambda one: not one.raises_budget or not one.policy.needs_approval,
        "The agent may spend more by now than this version says: ask for a deployment of the newest one.",
    ),
    Rule("spend", frozenset({Act.SPEND}), lambda one: one.policy.spends, "A {type} agent has no budget."),
    Rule(
        "budget",
        _GO | {Act.TRAIN, Act.SPEND},
        lambda one: bool(one.budget_micro) or not one.policy.needs_budget,
        "A {type} agent needs a budget_limit for this.",
    ),
    Rule(
        "safety policy",
        _GO,
        lambda one: one.has_safety_policy or not one.policy.needs_safety_policy,
        "A {type} agent needs a safety_policy for this.",
    ),
    Rule(
        "approval",
        frozenset({Act.START}),
        lambda one: one.approved or not one.policy.needs_approval,
        "A deployment of a {type} agent needs the approval of an operator who is not its author.",
    ),
    Rule(
        "deployment",
        frozenset({Act.INVOKE}),
        lambda one: one.deployed or not one.policy.needs_deployment,
        "A {type} agent is called only while an approved deployment of it runs.",
    ),
    Rule(
        "model",
        frozenset({Act.INVOKE}),
        lambda one: one.limits.models is None or one.model in one.limits.models,
        "Its limits do not name this model.",
    ),
    Rule(
        "runs per hour",
        frozenset({Act.INVOKE}),
        lambda one: one.limits.runs_per_hour is None or one.runs_last_hour < one.limits.runs_per_hour,
        "It has had {runs_last_hour} runs within an hour, which is its limit.",
    ),
    Rule(
        "moves",
        frozenset({Act.MOVE, Act.APPROVE, Act.START, Act.STOP}) | _OF_JOBS,
        lambda one: not one.no_move,
        "{no_move}",
        Conflict,
    ),
)


class Decision(NamedTuple):
    """Whether it may be done."""

    act: Act
    rule: str  #: that was broken; '' where it is allowed
    why: str  #: it is refused, a sentence; '' where it is allowed
    refusal: type[GaelpError] = PolicyViolated

    @property
    def allowed(self) -> bool:
        """Whether no rule was broken."""
        return not self.rule


def decide(act: Act, asked: Asked) -> Decision:
    """Go through the rules."""
    for rule in RULES:
        if act in rule.acts and not rule.holds(asked):
            return Decision(act, rule.name, rule.why.format(**asked._asdict()), rule.refusal)
    return Decision(act, "", "")
