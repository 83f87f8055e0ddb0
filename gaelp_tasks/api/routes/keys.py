"""Keys by which who asks comes in without a token that ends."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.db.users import Keys
from gaelp_tasks.models.audit import By
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.user import Key, NewKey
from gaelp_tasks.services.users import make_key

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/keys", tags=["users"])

Someone = Annotated[Caller, needs(Role.USER)]
At = Annotated[State, here]


@router.get("")
async def listed(at: At, caller: Someone, page: Paged) -> list[Key]:
    """The caller's own keys, without what is secret of them."""
    return await Keys(at.db, caller.name).listed(page.skip, page.limit)


@router.post("", status_code=201)
async def add(at: At, caller: Someone, new: NewKey, response: Response) -> Key:
    """Make one for the caller; `key` is told in this answer and never again."""
    response.headers["Cache-Control"] = "no-store"
    made = await make_key(at.db, caller, new)
    at.identity.forget()
    return made


@router.delete("/{key_id}", status_code=204)
async def remove(at: At, caller: Someone, key_id: Annotated[int, Path(ge=1, le=2**63 - 1)]) -> Response:
    """Take one of the caller's own back."""
    await Keys(at.db, caller.name, By.of(caller)).remove(key_id)
    at.identity.forget()
    return Response(status_code=204)
