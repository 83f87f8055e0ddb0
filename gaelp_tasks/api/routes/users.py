"""Who is known, and what each may do."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.db.users import Users
from gaelp_tasks.models.audit import By
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.user import NewUser, User, UserChanges

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/users", tags=["users"])

Admin = Annotated[Caller, needs(Role.ADMIN)]
At = Annotated[State, here]
UserId = Annotated[int, Path(ge=1, le=2**63 - 1)]


@router.get("/me")
async def me(caller: Annotated[Caller, needs(Role.USER)]) -> Caller:
    """Who asks, as the API sees it."""
    return caller


@router.get("")
async def listed(at: At, caller: Admin, page: Paged) -> list[User]:
    """Users by name."""
    return await Users(at.db, caller.scope).listed(page.skip, page.limit)


@router.post("", status_code=201)
async def add(at: At, caller: Admin, new: NewUser) -> User:
    """Know somebody from now on."""
    made = await Users(at.db, caller.scope, By.of(caller)).add(new, datetime.now(UTC))
    at.identity.forget()
    return made


@router.get("/{user_id}")
async def show(at: At, caller: Admin, user_id: UserId) -> User:
    """One user."""
    return await Users(at.db, caller.scope).get(user_id)


@router.patch("/{user_id}")
async def change(at: At, caller: Admin, user_id: UserId, changes: UserChanges) -> User:
    """Change what is given and leave the rest; counts within seconds on every replica."""
    changed = await Users(at.db, caller.scope, By.of(caller)).change(user_id, changes, datetime.now(UTC))
    at.identity.forget()
    return changed


@router.delete("/{user_id}", status_code=204)
async def remove(at: At, caller: Admin, user_id: UserId) -> Response:
    """Let nobody in by this name any more; its keys are gone."""
    await Users(at.db, caller.scope, By.of(caller)).remove(user_id, datetime.now(UTC))
    at.identity.forget()
    return Response(status_code=204)
