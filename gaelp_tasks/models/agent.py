"""An agent as the control plane keeps it: what it is made of, its versions, its states and their moves. Pure.

pending ──> running <──> paused ──> completed
   │          │ │ └────────│──────────^ │
   │          │ └──> failed <─┘         │      (completed and failed may run again)
   └──────────┴────────┴────────────────┴──> terminated
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SecretStr, model_validator

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.image import ImageName
from gaelp_tasks.models.limits import Limits
from gaelp_tasks.models.resources import Quantities
from gaelp_tasks.models.stored import StoredObject, StoredText, Units, micro, units

__all__ = [
    "MOVES",
    "TERMINAL",
    "USABLE",
    "Agent",
    "AgentChange",
    "AgentFields",
    "AgentName",
    "AgentSpec",
    "AgentState",
    "AgentType",
    "AgentVersion",
    "NewAgent",
    "SecretName",
    "SecretValue",
    "Secrets",
    "may_move",
    "plain",
    "refused_names",
]

MOST_NAMES = 200  #: of variables, of secrets
LONGEST_VALUE = 32 * 1024  #: characters of a variable or a secret
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
#: names of variables that would change which program runs, or how; and those that are ours
REFUSED = re.compile(
    r"(LD_|DYLD_|GCONV_|GLIBC_|OPENSSL_|GAELP_|HYPERPARAM_|PYTHON|BASH_|PERL|RUBY|NODE_|LUA_|JULIA_|GIT_).*"
    r"|(_JAVA|JAVA_|JDK_).*|PATH|HOME|SHELL|SHELLOPTS|BASHOPTS|ENV|IFS|TMPDIR|USER|LOCPATH"
)
OURS = ("GAELP_", "HYPERPARAM_")  #: what we tell a program by


class AgentType(StrEnum):
    """What an agent is for; its policy goes by it."""

    SIMULATION = "simulation"  #: trains in a simulated world, and has no real budget
    REAL_DEPLOYMENT = "real_deployment"  #: works with real money
    EVALUATION = "evaluation"  #: compares, within declared limits
    RESEARCH = "research"  #: experiments, within declared limits


class AgentState(StrEnum):
    """Where an agent is in its life."""

    PENDING = "pending"  #: registered
    RUNNING = "running"
    PAUSED = "paused"  #: takes nothing new
    COMPLETED = "completed"  #: has done what it was for
    FAILED = "failed"
    TERMINATED = "terminated"  #: for good; what it did stays in the audit


_S = AgentState
MOVES: dict[AgentState, frozenset[AgentState]] = {
    _S.PENDING: frozenset({_S.RUNNING, _S.PAUSED, _S.FAILED, _S.TERMINATED}),
    _S.RUNNING: frozenset({_S.PAUSED, _S.COMPLETED, _S.FAILED, _S.TERMINATED}),
    _S.PAUSED: frozenset({_S.RUNNING, _S.COMPLETED, _S.FAILED, _S.TERMINATED}),
    _S.COMPLETED: frozenset({_S.RUNNING, _S.TERMINATED}),
    _S.FAILED: frozenset({_S.RUNNING, _S.TERMINATED}),
    _S.TERMINATED: frozenset(),
}
TERMINAL = frozenset(state for state, moves in MOVES.items() if not moves)
USABLE = frozenset({_S.PENDING, _S.RUNNING})  #: states in which an agent may be called and trained


def may_move(before: AgentState, after: AgentState) -> bool:
    """Whether the table has this move."""
    return after in MOVES[before]


def _printable(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("take printable characters and no spaces around it")
    return value


def _variable(value: str) -> str:
    if not VARIABLE.fullmatch(value):
        raise ValueError("take letters, digits and _, no digit first")
    if value.upper().startswith(OURS):
        raise ValueError(f"names that begin with {' or '.join(OURS)} are ours")
    return value


def refused_names(declared: Iterable[str]) -> list[str]:
    """Variables that no agent's programs get; agents of earlier releases may have some."""
    return [name for name in declared if not VARIABLE.fullmatch(name) or REFUSED.fullmatch(name.upper())]


def _harmless(value: str) -> str:
    if refused_names([value]):
        raise ValueError(f"{value} would change which program runs, or how: no agent sets it")
    return value


def _not_too_long(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text or len(text) > LONGEST_VALUE or "\0" in text:
        raise ValueError(f"a secret has 1 to {LONGEST_VALUE} characters, and no NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the secret holds half a character (a lone surrogate)") from None
    return value


AgentName = Annotated[StoredText, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Variable = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_variable)]
SecretName = Variable
NewName = Annotated[Variable, AfterValidator(_harmless)]
SecretValue = Annotated[SecretStr, AfterValidator(_not_too_long)]


Value = Annotated[StoredText, Field(max_length=LONGEST_VALUE)]
NewVariables = Annotated[dict[NewName, Value], Field(max_length=MOST_NAMES)]
Secrets = Annotated[dict[NewName, SecretValue], Field(max_length=MOST_NAMES)]


def plain(secrets: Mapping[str, SecretStr]) -> dict[str, str]:
    """The secrets themselves, to be sealed and forgotten."""
    return {name: value.get_secret_value() for name, value in secrets.items()}


class AgentFields(Frozen):
    """What a version of an agent is made of, but for its name."""

    docker_image: ImageName | None = None  #: for training; None: it has none
    resource_requirements: Quantities = Quantities()
    budget_limit: Units | None = Field(None, examples=[5000.0])  #: what it may spend in all; None: unlimited
    description: Annotated[StoredText, Field(max_length=10_000)] = ""
    #: free; invocations make use of model, system_prompt, agent and options
    config: StoredObject = Field(default_factory=dict)
    environment: Annotated[dict[Variable, Value], Field(max_length=MOST_NAMES)] = Field(default_factory=dict)
    hyperparameters: StoredObject = Field(default_factory=dict)
    safety_policy: Limits | None = None  #: what a real_deployment agent must keep to
    limits: Limits | None = None  #: what an evaluation or research agent declares

    @property
    def budget_micro(self) -> int | None:
        """The budget in micro-units."""
        return None if self.budget_limit is None else micro(self.budget_limit)


class AgentSpec(AgentFields):
    """All of one version; it is never changed."""

    name: AgentName
    type: AgentType

    def kept(self) -> dict[str, Any]:
        """As the database keeps it: money in micro-units, and only what was said."""
        told = self.model_dump(mode="json", exclude_defaults=True)
        if told.pop("budget_limit", None) is not None:
            told["budget_limit_micro"] = self.budget_micro
        return told

    @classmethod
    def read(cls, kept: dict[str, Any]) -> "AgentSpec":
        """What `kept` has told."""
        given = dict(kept)
        amount_micro = given.pop("budget_limit_micro", None)
        return cls(**given, budget_limit=None if amount_micro is None else units(amount_micro))


class NewAgent(AgentFields):
    """A registration."""

    name: AgentName
    type: AgentType
    environment: NewVariables = Field(default_factory=dict)
    secrets: Secrets = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_name_once(self) -> "NewAgent":
        if both := sorted(self.environment.keys() & self.secrets.keys()):
            raise ValueError(f"{both[0]} is among the environment and among the secrets")
        return self

    @property
    def spec(self) -> AgentSpec:
        """Its first version."""
        return AgentSpec(**{name: getattr(self, name) for name in AgentSpec.model_fields})


class AgentChange(Frozen):
    """What shall be otherwise in the next version; what is left out stays, and null takes away."""

    name: AgentName | None = None
    type: AgentType | None = None  #: it stays: another one is refused
    docker_image: ImageName | None = None
    resource_requirements: Quantities | None = None
    budget_limit: Units | None = None
    description: Annotated[StoredText, Field(max_length=10_000)] | None = None
    config: StoredObject | None = None
    environment: NewVariables | None = None
    hyperparameters: StoredObject | None = None
    safety_policy: Limits | None = None
    limits: Limits | None = None

    def applied(self, before: AgentSpec) -> AgentSpec:
        """The version that comes of it. Raises ValueError where its type would be another one."""
        if self.type not in {None, before.type}:
            raise ValueError(f"type: the agent stays a {before.type} agent; register another one.")
        fields = {name: getattr(before, name) for name in AgentSpec.model_fields}
        for name in self.model_fields_set:
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
            elif name in {"name", "type"}:
                continue  # there is none without
            else:
                fields[name] = AgentSpec.model_fields[name].get_default(call_default_factory=True)
        return AgentSpec(**fields)


class AgentVersion(Frozen):
    """One version, as it is told."""

    agent_id: int
    version: int
    author: str
    created_at: datetime
    rolled_back_to: int | None  #: the version that it is again; None where it is new
    spec: AgentSpec


class Agent(AgentSpec):
    """An agent as it stands, with its newest version."""

    id: int
    tenant: str
    owner: str
    status: AgentState
    version: int
    author: str  #: who made this version
    secrets: tuple[str, ...] = ()  #: their names
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None  #: when it was terminated
