"""What users may hold of the machines at once."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.models.caller import Caller, Role, TenantName, UserName
from gaelp_tasks.models.quota import NewLimits, QuotaShown
from gaelp_tasks.services import quotas

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/quotas", tags=["quotas"])

At = Annotated[State, here]
User = Annotated[Caller, needs(Role.USER)]
Name = Annotated[UserName, Path(description="of a user")]
Tenant = Annotated[TenantName | None, Query(description="whose; an admin may name any")]


@router.get("")
async def listed(at: At, caller: User, page: Paged) -> list[QuotaShown]:
    """Of users with limits of their own and of those that hold something; who is no operator sees its own."""
    return await quotas.listed(at.db, caller, at.settings, most=page.limit, skip=page.skip)


@router.get("/{user}")
async def show(at: At, caller: User, user: Name, tenant: Tenant = None) -> QuotaShown:
    """Limits, and what is held of them: thousandths of a core, bytes, GPUs, runs."""
    return await quotas.shown_to(at.db, caller, user, tenant, at.settings)


@router.put("/{user}")
async def change(
    at: At,
    caller: Annotated[Caller, needs(Role.ADMIN)],
    user: Name,
    new: NewLimits,
    tenant: Tenant = None,
) -> QuotaShown:
    """Set the limits; what is left out is the cluster's default again. What is held stays held."""
    return await quotas.set_by(at.db, caller, user, new, tenant, at.settings)
