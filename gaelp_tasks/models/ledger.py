"""What the ledger tells: entries of budgets, lines of bills, and their sums. Pure."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, AwareDatetime

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.money import Account, Amount, CostKind, Move, Period

__all__ = ["CostLine", "CostSum", "Entry", "Group", "Moment", "NewBudget", "Which"]


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("no calendar has this day in UTC") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]  #: with a time zone


class Group(StrEnum):
    """What costs can be summed up by."""

    AGENT = "agent"
    USER = "user"
    JOB = "job"
    KIND = "kind"
    DAY = "day"  #: in UTC
    MONTH = "month"


class Which(NamedTuple):
    """The costs that are meant; '' and None stand for any."""

    agent: str = ""
    user: str = ""
    job: str = ""
    kind: str = ""
    since: datetime | None = None
    until: datetime | None = None  #: this moment itself is not meant any more


class CostLine(Frozen):
    """A line of a bill."""

    id: int
    at: datetime
    tenant: str
    key: str  #: of the work
    agent: str  #: '' where it has none, as the next two
    user: str
    job: str
    kind: CostKind
    quantity: int  #: tokens, milliseconds or loads, as the kind says
    amount_micro: int  #: below 0: taken off


class CostSum(Frozen):
    """What a group of lines adds up to; None for what they were not grouped by."""

    agent: str | None = None
    user: str | None = None
    job: str | None = None
    kind: CostKind | None = None
    day: str | None = None
    month: str | None = None
    quantity: int | None = None  #: None where kinds are mixed
    amount_micro: int


class Entry(Frozen):
    """An amount that went from one account of a budget to another."""

    id: int
    at: datetime
    move: Move
    source: Account
    target: Account
    amount_micro: int
    key: str  #: of the work; '' where somebody set the limit, or a period began
    by: str  #: who set the limit; '' for work


class NewBudget(Frozen):
    """What a budget is to be."""

    limit_micro: Amount
    period: Period = Period.NONE
