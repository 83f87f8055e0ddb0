"""Nodes, for operators: what they announce, and taking one out of service."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.cordons import Wish
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services import nodes

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/nodes", tags=["nodes"])

At = Annotated[State, here]
Operator = Annotated[Caller, needs(Role.OPERATOR)]
Worker = Annotated[str, Path(max_length=255, description="as the list names it")]
HandBack = Annotated[bool, Query(description="give what runs there back to its queue now")]


@router.get("")
async def listed(at: At, caller: Operator, page: Paged) -> list[dict[str, Any]]:  # noqa: ARG001  the policy
    """Every node: health, slots, memory, tokens per second, models, and what runs there."""
    found = await asyncio.to_thread(nodes.announced, at.app)
    return found[page.skip : page.skip + page.limit]


@router.post("/{worker}/cordon")
async def cordon(at: At, caller: Operator, worker: Worker) -> dict[str, Any]:  # noqa: ARG001  the policy
    """Have a worker take nothing new; what runs there goes on. It stays so, restarts included."""
    return await asyncio.to_thread(nodes.wish, at.app, worker, Wish.CORDON)


@router.post("/{worker}/drain", status_code=202)
async def drain(
    at: At,
    caller: Operator,  # noqa: ARG001  the policy
    worker: Worker,
    *,
    hand_back: HandBack = False,
) -> dict[str, Any]:
    """Cordon a worker to have it empty; `running` falls to 0. With `hand_back`, cordon it once it is."""
    wanted = Wish.HAND_BACK if hand_back else Wish.CORDON
    return await asyncio.to_thread(nodes.wish, at.app, worker, wanted)


@router.post("/{worker}/resume")
async def resume(at: At, caller: Operator, worker: Worker) -> dict[str, Any]:  # noqa: ARG001  the policy
    """Let a cordoned worker take work again."""
    return await asyncio.to_thread(nodes.lift, at.app, worker)
