"""Secrets of agents: sealed before they are kept, told to nobody but the programs that they are for."""

from collections.abc import Mapping
from datetime import UTC, datetime

from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Session
from gaelp_tasks.errors import Conflict, NotFound
from gaelp_tasks.models.agent import MOST_NAMES, Agent
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.policy import Act
from gaelp_tasks.services.agents import asked_of, found, spec_of
from gaelp_tasks.services.approvals import tell_withdrawn, withdraw
from gaelp_tasks.services.audit import judge, trail
from gaelp_tasks.services.place import At
from gaelp_tasks.services.sealing import Sealer, sealed
from gaelp_tasks.settings import Settings

__all__ = ["opened", "remove_secret", "reseal", "set_secrets"]

AT_ONCE = 100  #: agents whose secrets are sealed anew in one look


async def set_secrets(at: At, caller: Caller, agent_id: int, secrets: Mapping[str, str]) -> Agent:
    """Put these in the place of those of the same names; approvals with the others hold no more.

    Raises NotFound, NotAllowed, Conflict.
    """
    async with trail(at.db) as session:
        row = await found(session, caller, agent_id, lock=True)
        agents, spec = Agents(session, row.tenant), (await spec_of(session, row)).spec
        asked = asked_of(caller, row, spec, at.settings)
        await judge(session, caller, Act.SET_SECRET, asked, agent=row, subject=_names(secrets))
        if both := sorted(spec.environment.keys() & secrets.keys()):
            raise Conflict(f"{both[0]} is in the environment of the agent: take it out there first.")
        if len(secrets.keys() | (await agents.sealed(agent_id)).keys()) > MOST_NAMES:
            raise Conflict(f"An agent has at most {MOST_NAMES} secrets.")
        texts = sealed(at.settings, row.tenant, row.id, secrets)
        await agents.keep_secrets(row, texts, datetime.now(UTC), by=caller.name)
        withdrawn = await withdraw(session, caller, row) if texts else {}
        await session.flush()
        [agent] = await agents.told([row])
    await tell_withdrawn(at, caller, agent_id, withdrawn)
    return agent


async def remove_secret(at: At, caller: Caller, agent_id: int, name: str) -> Agent:
    """Take one away; approvals with it hold no more. Raises NotFound, NotAllowed."""
    async with trail(at.db) as session:
        row = await found(session, caller, agent_id, lock=True)
        agents = Agents(session, row.tenant)
        asked = asked_of(caller, row, (await spec_of(session, row)).spec, at.settings)
        await judge(session, caller, Act.REMOVE_SECRET, asked, agent=row, subject=name[:255])
        if not await agents.remove_secrets(row, name):
            raise NotFound(f"Agent {agent_id} has no secret of this name.")
        row.secrets_by = caller.name
        withdrawn = await withdraw(session, caller, row)
        [agent] = await agents.told([row])
    await tell_withdrawn(at, caller, agent_id, withdrawn)
    return agent


async def opened(session: Session, settings: Settings, tenant: str, agent_id: int) -> dict[str, str]:
    """The secrets themselves, for a program that is started for this agent; they go into no log.

    Raises Conflict where a key is not here.
    """
    kept = await Agents(session, tenant).sealed(agent_id)
    if not kept:
        return {}
    sealer = Sealer(settings)
    return {name: sealer.open(text, (tenant, agent_id, name)) for name, text in kept.items()}


async def reseal(at: At) -> int:
    """Seal by the first key what another one has sealed; how many secrets that were. Raises Conflict.

    After that the other keys are needed no more.
    """
    sealer, changed, after = Sealer(at.settings), 0, 0
    while True:
        async with at.db.reading() as session:
            ids = await Agents(session, None).ids_with_secrets(after=after, most=AT_ONCE)
        for agent_id in ids:
            async with at.db.writing() as session:
                changed += await _reseal(session, sealer, agent_id)
        if len(ids) < AT_ONCE:
            return changed
        after = ids[-1]


async def _reseal(session: Session, sealer: Sealer, agent_id: int) -> int:
    agents = Agents(session, None)
    row = await agents.row(agent_id, lock=True)
    if row is None:
        return 0
    stale = {name: text for name, text in (await agents.sealed(agent_id)).items() if sealer.is_stale(text)}
    if stale:
        places = {name: (row.tenant, row.id, name) for name in stale}
        anew = {
            name: sealer.seal(sealer.open(text, places[name]), places[name]) for name, text in stale.items()
        }
        await agents.reseal(row, anew)
    return len(stale)


def _names(secrets: Mapping[str, str]) -> str:
    """What the audit says of them."""
    return ", ".join(sorted(secrets))[:255]
