"""What agents, users and jobs may spend, what moved in their budgets, and what was paid for."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.db.budgets import Budgets
from gaelp_tasks.db.ledger import Ledger
from gaelp_tasks.models.caller import Caller, Role, TenantName, UserName
from gaelp_tasks.models.ledger import CostLine, CostSum, Entry, Group, Moment, NewBudget, Which
from gaelp_tasks.models.money import Budget, CostKind, Owner, OwnerKind
from gaelp_tasks.services import budgets
from gaelp_tasks.services.limiting import set_by

__all__ = ["costs", "router"]

router = APIRouter(prefix="/api/v1/budgets", tags=["budgets"])
costs = APIRouter(prefix="/api/v1/costs", tags=["budgets"])

At = Annotated[State, here]
User = Annotated[Caller, needs(Role.USER)]
Id = Annotated[UserName, Path(description="the number of an agent or job, or the name of a user")]
Name = Annotated[UserName | None, Query()]
Tenant = Annotated[TenantName | None, Query(description="whose; an admin may name any")]


@router.get("")
async def listed(at: At, caller: User, page: Paged, kind: OwnerKind | None = None) -> list[Budget]:
    """The oldest first."""
    found = Budgets(at.db, caller.scope)
    return await found.listed(now=datetime.now(UTC), kind=kind, most=page.limit, skip=page.skip)


@router.get("/{kind}/{owner_id}")
async def show(at: At, caller: User, kind: OwnerKind, owner_id: Id, tenant: Tenant = None) -> Budget:
    """One budget, with what is available, held and spent of it in this period."""
    return await budgets.show(at.db, caller.acting_for(tenant), Owner(kind, owner_id))


@router.put("/{kind}/{owner_id}")
async def change(
    at: At,
    caller: Annotated[Caller, needs(Role.ADMIN)],
    kind: OwnerKind,
    owner_id: Id,
    new: NewBudget,
    tenant: Tenant = None,
) -> Budget:
    """Make a budget, or change its limit; what is held and spent stays so."""
    return await set_by(at, caller, Owner(kind, owner_id), new, tenant)


@router.get("/{kind}/{owner_id}/entries")
async def entries(
    at: At, caller: User, kind: OwnerKind, owner_id: Id, page: Paged, tenant: Tenant = None
) -> list[Entry]:
    """What moved in a budget, the newest first; all of it adds up to the balances."""
    ledger = Ledger(at.db, caller.acting_for(tenant))
    return await ledger.entries(Owner(kind, owner_id), most=page.limit, skip=page.skip)


async def _which(
    agent: Name = None,
    user: Name = None,
    job: Name = None,
    kind: CostKind | None = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> Which:
    return Which(agent or "", user or "", job or "", kind or "", since, until)


Meant = Annotated[Which, Depends(_which)]


@costs.get("")
async def sums(
    at: At, caller: User, which: Meant, page: Paged, by: Annotated[list[Group] | None, Query()] = None
) -> list[CostSum]:
    """What was paid, summed up `by` any of agent, user, job, kind, day and month; without, one sum."""
    return await Ledger(at.db, caller.scope).sums(which, by or (), most=page.limit, skip=page.skip)


@costs.get("/lines")
async def lines(at: At, caller: User, which: Meant, page: Paged) -> list[CostLine]:
    """Line by line, the newest first."""
    return await Ledger(at.db, caller.scope).lines(which, most=page.limit, skip=page.skip)
