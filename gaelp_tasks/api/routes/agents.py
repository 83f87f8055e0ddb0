"""Agents, their versions and their secrets."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.state import State, here
from gaelp_tasks.db.agents import Which
from gaelp_tasks.models.agent import (
    Agent,
    AgentChange,
    AgentName,
    AgentState,
    AgentType,
    AgentVersion,
    NewAgent,
    SecretName,
    Secrets,
    plain,
)
from gaelp_tasks.models.caller import Caller, Role, UserName
from gaelp_tasks.models.stored import LONGEST_ID
from gaelp_tasks.services.agent_secrets import remove_secret, reseal, set_secrets
from gaelp_tasks.services.agents import AgentService

__all__ = ["AgentId", "router"]

router = APIRouter(prefix="/api/v1", tags=["agents"])

AgentId = Annotated[int, Path(ge=1, le=LONGEST_ID)]
Here = Annotated[State, here]
User = Annotated[Caller, needs(Role.USER)]


@router.post("/agents", status_code=201)
async def register(at: Here, caller: User, new: NewAgent) -> Agent:
    """Register an agent."""
    return await AgentService(at, caller).register(new)


@router.get("/agents")
async def listed(
    at: Here,
    caller: User,
    page: Paged,
    status: AgentState | None = None,
    type: Annotated[AgentType | None, Query()] = None,  # noqa: A002  the name that is asked for
    name: AgentName | None = None,
    owner: UserName | None = None,
) -> list[Agent]:
    """Agents, the oldest first; those that are terminated only where `status` says so."""
    which = Which(status, type, name, owner)
    return await AgentService(at, caller).listed(which, most=page.limit, skip=page.skip)


@router.get("/agents/{agent_id}")
async def show(at: Here, caller: User, agent_id: AgentId) -> Agent:
    """One agent."""
    return await AgentService(at, caller).show(agent_id)


@router.patch("/agents/{agent_id}")
async def change(at: Here, caller: User, agent_id: AgentId, body: AgentChange) -> Agent:
    """Make a new version: what is left out stays, and null takes away."""
    return await AgentService(at, caller).change(agent_id, body)


@router.delete("/agents/{agent_id}")
async def terminate(at: Here, caller: User, agent_id: AgentId) -> Agent:
    """End it for good; its versions and what was decided stay."""
    return await AgentService(at, caller).terminate(agent_id)


@router.patch("/agents/{agent_id}/status")
async def move(at: Here, caller: User, agent_id: AgentId, status: AgentState) -> Agent:
    """Bring it into another state."""
    return await AgentService(at, caller).move(agent_id, status)


@router.get("/agents/{agent_id}/versions")
async def versions(at: Here, caller: User, agent_id: AgentId, page: Paged) -> list[AgentVersion]:
    """Its versions, the newest first."""
    return await AgentService(at, caller).versions(agent_id, most=page.limit, skip=page.skip)


@router.post("/agents/{agent_id}/versions/{version}/rollback")
async def roll_back(
    at: Here, caller: User, agent_id: AgentId, version: Annotated[int, Path(ge=1, le=2**31 - 1)]
) -> Agent:
    """Make a new version that is this one again."""
    return await AgentService(at, caller).roll_back(agent_id, version)


@router.get("/agents/{agent_id}/secrets")
async def secret_names(at: Here, caller: User, agent_id: AgentId) -> list[str]:
    """The names of its secrets; nobody is told the secrets."""
    return list((await AgentService(at, caller).show(agent_id)).secrets)


@router.put("/agents/{agent_id}/secrets")
async def put_secrets(at: Here, caller: User, agent_id: AgentId, secrets: Secrets) -> list[str]:
    """Set secrets, `{"NAME": "value"}`; others stay. Answers their names."""
    return list((await set_secrets(at, caller, agent_id, plain(secrets))).secrets)


@router.delete("/agents/{agent_id}/secrets/{name}")
async def delete_secret(at: Here, caller: User, agent_id: AgentId, name: SecretName) -> list[str]:
    """Take a secret away. Answers the names of the others."""
    return list((await remove_secret(at, caller, agent_id, name)).secrets)


@router.post("/secrets/reseal")
async def seal_anew(at: Here, caller: Annotated[Caller, needs(Role.ADMIN)]) -> dict[str, int]:  # noqa: ARG001  the policy
    """Seal all secrets by the first of GAELP_SECRET_KEYS; the others are needed no more."""
    return {"resealed": await reseal(at)}
