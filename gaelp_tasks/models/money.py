"""Money as whole micro-units: who owns a budget, the accounts that it moves between, what things cost. Pure.

outside ──grant──> available ──hold──> held ──settle──> spent
        <─withdraw─      ^ <──release──┘ │                │
                         └──────────turn: a new period────┘
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import Field

from gaelp_tasks.models.frozen import Frozen

__all__ = [
    "MOST_MICRO",
    "PATHS",
    "UNITS",
    "Account",
    "Amount",
    "Budget",
    "Charge",
    "CostKind",
    "HoldState",
    "Move",
    "Owner",
    "OwnerKind",
    "Period",
    "balances",
    "closing",
    "micro_of",
    "units",
]

MOST_MICRO = 2**53 - 1  #: nine billion units: a number that JSON's readers keep, and a column's sums too
WRITTEN = re.compile(r"(\d{1,12}|\d{1,3}(,\d{3}){1,3})(\.\d{1,6})?|\.\d{1,6}", re.ASCII)

Amount = Annotated[int, Field(ge=0, le=MOST_MICRO)]  #: micro-units; 1,000,000 are one unit of the currency


class OwnerKind(StrEnum):
    """Whose a budget is."""

    AGENT = "agent"
    USER = "user"
    JOB = "job"


class Owner(NamedTuple):
    """One that can have a budget, within a tenant."""

    kind: OwnerKind
    id: str  #: of an agent or a job its number as text, of a user its name

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class Period(StrEnum):
    """How often what was spent counts anew; in UTC."""

    NONE = "none"  #: never
    DAY = "day"
    WEEK = "week"  #: from Monday on
    MONTH = "month"

    def start(self, at: datetime) -> datetime | None:
        """When the period that holds this moment began; None for NONE."""
        day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        match self:
            case Period.NONE:
                return None
            case Period.DAY:
                return day
            case Period.WEEK:
                return day - timedelta(days=day.weekday())
            case Period.MONTH:
                return day.replace(day=1)


class Account(StrEnum):
    """A budget's three balances, and the rest of the world."""

    OUTSIDE = "outside"
    AVAILABLE = "available"  #: below 0 where the limit was lowered under what is held and spent
    HELD = "held"
    SPENT = "spent"


class Move(StrEnum):
    """Why an amount went from one account to another."""

    GRANT = "grant"  #: the limit was set, or raised
    WITHDRAW = "withdraw"  #: the limit was lowered
    HOLD = "hold"
    SETTLE = "settle"  #: what the work really cost
    RELEASE = "release"  #: what was held and not spent
    TURN = "turn"  #: a new period began


PATHS: dict[Move, tuple[Account, Account]] = {
    Move.GRANT: (Account.OUTSIDE, Account.AVAILABLE),
    Move.WITHDRAW: (Account.AVAILABLE, Account.OUTSIDE),
    Move.HOLD: (Account.AVAILABLE, Account.HELD),
    Move.SETTLE: (Account.HELD, Account.SPENT),
    Move.RELEASE: (Account.HELD, Account.AVAILABLE),
    Move.TURN: (Account.SPENT, Account.AVAILABLE),
}


class HoldState(StrEnum):
    """What has become of a hold."""

    HELD = "held"
    SETTLED = "settled"
    VOIDED = "voided"


class CostKind(StrEnum):
    """What was paid for."""

    PROMPT_TOKENS = "prompt_tokens"
    COMPLETION_TOKENS = "completion_tokens"
    GPU_TIME = "gpu_time"
    COLD_LOADS = "cold_loads"
    WASTED = "wasted"  #: tokens of runs that were lost and repeated
    CANCELLED = "cancelled"  #: tokens that somebody was told before he called it off
    TRAINING_TIME = "training_time"
    PREEMPTIBLE = "preemptible"  #: a discount: below 0
    OVER_BOUND = "over_bound"  #: what would have been above the hold, and is not paid: below 0
    OTHER = "other"  #: what was spent and no charge named


#: of the quantities of the ledger
UNITS: dict[CostKind, str] = {
    CostKind.PROMPT_TOKENS: "tokens",
    CostKind.COMPLETION_TOKENS: "tokens",
    CostKind.GPU_TIME: "ms",
    CostKind.COLD_LOADS: "loads",
    CostKind.WASTED: "tokens",
    CostKind.CANCELLED: "tokens",
    CostKind.TRAINING_TIME: "ms",
    CostKind.PREEMPTIBLE: "ms",
    CostKind.OVER_BOUND: "",
    CostKind.OTHER: "",
}


class Charge(NamedTuple):
    """One line of a bill."""

    kind: CostKind
    quantity: int  #: in UNITS
    amount_micro: int  #: below 0 for a discount


class Budget(Frozen):
    """A budget as it stands; the limit is always what is available, held and spent together."""

    tenant: str
    owner: Owner
    limit_micro: int
    available_micro: int
    held_micro: int
    spent_micro: int  #: in this period
    period: Period
    period_start: datetime | None  #: None where there are no periods
    updated_at: datetime


def closing(bound_micro: int, spent_micro: int, charges: Iterable[Charge]) -> tuple[int, tuple[Charge, ...]]:
    """What a hold of this bound is settled with, and lines that sum up to just that.

    More than the bound is never paid. What the charges leave out, or have too much, is a line of its own.
    """
    paid = min(max(spent_micro, 0), bound_micro)
    lines = tuple(charges)
    rest = paid - sum(line.amount_micro for line in lines)
    if rest:
        kind = CostKind.OTHER if rest > 0 else CostKind.OVER_BOUND
        lines = (*lines, Charge(kind, 0, rest))
    return paid, lines


def balances(entries: Iterable[tuple[Move, int]]) -> dict[Account, int]:
    """What entries of (move, amount) add up to, account by account; all four sum up to 0."""
    found = dict.fromkeys(Account, 0)
    for move, amount_micro in entries:
        source, target = PATHS[move]
        found[source] -= amount_micro
        found[target] += amount_micro
    return found


def micro_of(text: str) -> int:
    """Micro-units of an amount in units, such as 12.50 or 1,000. Raises ValueError."""
    if not WRITTEN.fullmatch(text):
        raise ValueError(
            f"{text!r} is no amount: write one as 12.50, with six digits behind the point at most"
        )
    whole, _, fraction = text.replace(",", "").partition(".")
    found = int(whole or 0) * 1_000_000 + int(fraction.ljust(6, "0"))
    if found > MOST_MICRO:
        raise ValueError(f"{text} is more than any budget holds")
    return found


def units(amount_micro: int) -> str:
    """An amount for people, in whole units of the currency: 1,234.50; all digits that there are."""
    whole, micro = divmod(abs(amount_micro), 1_000_000)
    fraction = f"{micro:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount_micro < 0 else ''}{whole:,}.{fraction}"
