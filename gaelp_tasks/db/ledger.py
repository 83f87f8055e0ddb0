"""What was paid for, line by line and in sums, and what moved in budgets."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert

from gaelp_tasks.db.database import Session
from gaelp_tasks.db.money_rows import COSTS
from gaelp_tasks.models.money import Charge

__all__ = ["write_costs"]


async def write_costs(session: Session, hold: Row[Any], lines: Sequence[Charge], *, now: datetime) -> None:
    """The bill of a hold that is being settled."""
    if not lines:
        return
    whose = {"hold": hold.id, "at": now}
    whose |= {name: getattr(hold, name) for name in ("tenant", "agent", "user_name", "job")}
    costs = [
        {"kind": line.kind.value, "quantity": line.quantity, "amount_micro": line.amount_micro, **whose}
        for line in lines
    ]
    await session.execute(insert(COSTS).values(costs))
