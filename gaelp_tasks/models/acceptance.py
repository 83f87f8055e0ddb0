"""An invocation that was accepted over HTTP: what was asked, its states and their legal moves as data. Pure.

accepted ──> published ──> done, cut, failed
    │  ^         │
    │  └─────────┘            (Redis has lost it)
    └──> cut, failed          (cancelled, or refused, before it was published)
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from gaelp_tasks.models.invocation import Invocation

__all__ = ["MOVES", "OPEN", "TERMINAL", "Acceptance", "End", "Standing", "Submission"]

LARGEST = 2**63 - 1


class Standing(StrEnum):
    """How far it is by the database."""

    ACCEPTED = "accepted"  #: kept, and not known to be in Redis
    PUBLISHED = "published"
    DONE = "done"
    CUT = "cut"
    FAILED = "failed"


_ENDS = frozenset({Standing.DONE, Standing.CUT, Standing.FAILED})

MOVES: dict[Standing, frozenset[Standing]] = {
    Standing.ACCEPTED: frozenset({Standing.PUBLISHED, *_ENDS}),
    Standing.PUBLISHED: frozenset({Standing.ACCEPTED, *_ENDS}),
    Standing.DONE: frozenset(),
    Standing.CUT: frozenset(),
    Standing.FAILED: frozenset(),
}

TERMINAL = frozenset(standing for standing, moves in MOVES.items() if not moves)
OPEN = frozenset(Standing) - TERMINAL


class Submission(Invocation):
    """The body of a submission: an invocation, and who pays for it."""

    agent_id: Annotated[int, Field(ge=1, le=LARGEST)] | None = None  #: whose budget and policy count
    budget_micro: Annotated[int, Field(ge=1, le=LARGEST)] | None = None  #: the most that it may cost

    def arguments(self) -> dict[str, Any]:
        """What it asks of the agent, as `invoke_agent` takes it."""
        return self.model_dump(exclude_none=True, exclude={"agent_id", "budget_micro"})

    def digest(self, asked: str) -> str:
        """A digest of all that counts; `asked` is that of the invocation alone."""
        if self.agent_id is None and self.budget_micro is None:
            return asked
        return sha256(f"{asked} {self.agent_id} {self.budget_micro}".encode()).hexdigest()


class Acceptance(NamedTuple):
    """One accepted invocation as the database has it; times are aware."""

    id: str
    tenant: str  #: '' for none
    owner: str  #: who submitted it
    standing: Standing
    agent_id: int | None
    agent: str
    model: str  #: '' where none was named
    tier: str
    priority: int
    digest: str  #: of what was asked
    asked: str  #: the arguments as JSON; '' once it is over
    created_at: datetime
    budget_micro: int | None = None
    published_at: datetime | None = None
    publications: int = 0  #: so often it went to Redis
    life: str = ""  #: of the Redis that it was published to last
    cancelled_at: datetime | None = None  #: when somebody asked for that
    ended_at: datetime | None = None
    stop_reason: str = ""
    error: str = ""  #: class and sentence; '' where it did not fail
    result: str = ""  #: the result mapping as JSON; '' where there is none

    @property
    def is_over(self) -> bool:
        """Nothing will change any more."""
        return self.standing in TERMINAL


class End(NamedTuple):
    """How one has ended."""

    id: str
    standing: Standing
    stop_reason: str = ""
    error: str = ""
    result: Mapping[str, Any] | None = None  #: the result mapping, where there is one
    wasted_tokens: int = 0  #: told by runs that were lost and started over
