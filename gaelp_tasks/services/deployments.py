"""Deployments of agents: asked for, approved by a second pair of eyes, started, stopped, by a budget too."""

from datetime import UTC, datetime

from gaelp_tasks.db.agent_rows import AgentRow, DeploymentRow
from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Session
from gaelp_tasks.db.deployments import Deployments, deployment_of
from gaelp_tasks.db.idempotency import note_made
from gaelp_tasks.errors import NotFound
from gaelp_tasks.models.agent import USABLE, AgentState, AgentType
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.deployment import (
    AgentDeployment,
    DeploymentState,
    Environment,
    NewDeployment,
)
from gaelp_tasks.models.event import AgentEvent, EventKind
from gaelp_tasks.models.policy import POLICIES, Act, Asked, Decision
from gaelp_tasks.services import quotas
from gaelp_tasks.services.agents import asked_of, found, may_spend_more, spec_of
from gaelp_tasks.services.approvals import authors
from gaelp_tasks.services.audit import happened, judge, trail
from gaelp_tasks.services.moves import become, move_row, not_to_become, quota_key, stop_rows
from gaelp_tasks.services.place import At
from gaelp_tasks.services.telling import tell

__all__ = ["DeploymentService", "spent"]

BUDGET = "budget"  #: who stops it then
SPENT = "its budget is spent"


class DeploymentService:
    """What people do with deployments; each raises NotFound for an agent that the caller may not see."""

    def __init__(self, at: At, caller: Caller) -> None:
        self._at = at
        self._caller = caller

    async def add(self, agent_id: int, new: NewDeployment) -> AgentDeployment:
        """Ask for one. Raises PolicyViolated, NotAllowed."""
        async with trail(self._at.db) as session:
            agent = await found(session, self._caller, agent_id, lock=True)
            version = await spec_of(session, agent, new.version)
            where = new.environment or POLICIES[version.spec.type].environments[0]
            asked = asked_of(self._caller, agent, version.spec, self._at.settings)
            subject = f"version {version.version} in {where}"
            await judge(
                session,
                self._caller,
                Act.DEPLOY,
                asked._replace(environment=where),
                agent=agent,
                subject=subject,
            )
            row = await Deployments(session, agent.tenant).add(
                agent, version.version, where, new.replicas, by=self._caller.name, now=datetime.now(UTC)
            )
            note_made(session, f"agents/{agent.id}/deployments/{row.id}")
            return deployment_of(row)

    async def listed(
        self, agent_id: int, *, status: DeploymentState | None = None, most: int, skip: int = 0
    ) -> list[AgentDeployment]:
        """Those of an agent, the oldest first."""
        async with self._at.db.reading() as session:
            agent = await found(session, self._caller, agent_id)
            own = Deployments(session, agent.tenant)
            return await own.listed(agent_id, status=status, most=most, skip=skip)

    async def show(self, agent_id: int, deployment_id: int) -> AgentDeployment:
        """One deployment. Raises NotFound."""
        async with self._at.db.reading() as session:
            agent = await found(session, self._caller, agent_id)
            row = await Deployments(session, agent.tenant).row(agent_id, deployment_id)
            if row is None:
                raise NotFound(f"Agent {agent_id} has no deployment {deployment_id}.")
            return deployment_of(row)

    async def approve(self, agent_id: int, deployment_id: int) -> AgentDeployment:
        """Say that it may run. Raises NotAllowed, PolicyViolated, Conflict where somebody has said so."""
        async with trail(self._at.db) as session:
            agent, row, asked = await self._of(session, agent_id, deployment_id)
            newest, own = await spec_of(session, agent), await spec_of(session, agent, row.version)
            asked = asked._replace(
                raises_budget=may_spend_more(newest.spec, own.spec),
                authors=await authors(session, agent, row),
                no_move=not_to_become(row, DeploymentState.APPROVED),
            )
            await self._judge(session, Act.APPROVE, asked, row)
            become(row, DeploymentState.APPROVED)
            row.approved_by, row.approved_at, row.withdrawn_at = self._caller.name, datetime.now(UTC), None
            told = deployment_of(row)
        await self._tell(told, "pending")
        return told

    async def start(self, agent_id: int, deployment_id: int) -> AgentDeployment:
        """Let it run, and its agent with it.

        Raises NotAllowed, PolicyViolated, Conflict, QuotaExceeded.
        """
        async with trail(self._at.db) as session:
            agent, row, asked = await self._of(session, agent_id, deployment_id)
            await self._judge(session, Act.START, asked, row)
            was = row.state
            if was != DeploymentState.RUNNING.value:
                become(row, DeploymentState.RUNNING)
                await self._take_room(session, agent, row)
            if agent.state == AgentState.PENDING.value:
                move_row(agent, AgentState.RUNNING, datetime.now(UTC))
            told = deployment_of(row)
        await self._tell(told, was)
        return told

    async def _take_room(self, session: Session, agent: AgentRow, row: DeploymentRow) -> None:
        """Hold what its replicas need of its owner's quota. Raises QuotaExceeded."""
        spec = (await spec_of(session, agent, row.version)).spec
        needs = spec.resource_requirements.resources.times(row.replicas)
        settings = self._at.settings
        await quotas.hold(session, quota_key(row), agent.owner, needs, tenant=row.tenant, settings=settings)

    async def stop(self, agent_id: int, deployment_id: int) -> AgentDeployment:
        """Let it run no more. Raises NotAllowed."""
        async with trail(self._at.db) as session:
            _, row, asked = await self._of(session, agent_id, deployment_id)
            await self._judge(session, Act.STOP, asked, row)
            was = row.state
            if was != DeploymentState.STOPPED.value:
                await stop_rows(session, [row], f"stopped by {self._caller.name}")
            told = deployment_of(row)
        await self._tell(told, was)
        return told

    async def _of(
        self, session: Session, agent_id: int, deployment_id: int
    ) -> tuple[AgentRow, DeploymentRow, Asked]:
        """The agent and the deployment, locked, and the facts about both."""
        agent = await found(session, self._caller, agent_id, lock=True)
        row = await Deployments(session, agent.tenant).row(agent_id, deployment_id, lock=True)
        if row is None:
            raise NotFound(f"Agent {agent_id} has no deployment {deployment_id}.")
        version = await spec_of(session, agent, row.version)
        asked = asked_of(self._caller, agent, version.spec, self._at.settings)
        return (
            agent,
            row,
            asked._replace(
                environment=Environment(row.environment),
                approved=row.approved_at is not None and row.withdrawn_at is None,
            ),
        )

    async def _judge(self, session: Session, act: Act, asked: Asked, row: DeploymentRow) -> None:
        agent = await Agents(session, row.tenant).row(row.agent)
        await judge(session, self._caller, act, asked, agent=agent, subject=f"deployment {row.id}")

    async def _tell(self, told: AgentDeployment, was: str) -> None:
        data = {"deployment_id": told.id, "status": told.status.value, "was": was, "by": self._caller.name}
        event = AgentEvent(event=EventKind.STATE, agent_id=told.agent_id, data=data)
        await tell(self._at.redis, self._at.app.keys, event)


async def spent(at: At, tenant: str, agent_id: int, why: str) -> bool:
    """The budget of an agent has refused something: one that stops at its limit stops; whether this did it.

    To be called after the transaction that was refused. Raises DatabaseUnavailable.
    """
    async with at.db.writing() as session:
        agent = await Agents(session, tenant).row(agent_id, lock=True)
        if agent is None:
            return False
        refused = Decision(Act.SPEND, BUDGET, why)
        await happened(session, agent, refused, actor=BUDGET)
        stops = POLICIES[AgentType(agent.type)].stops_at_limit and AgentState(agent.state) in USABLE
        if stops:
            rows = await Deployments(session, tenant).in_states(agent_id, [DeploymentState.RUNNING])
            await stop_rows(session, rows, SPENT)
            for row in rows:
                stopped = Decision(Act.STOP, "", "")
                await happened(
                    session, agent, stopped, actor=BUDGET, subject=f"deployment {row.id}", why=SPENT
                )
            told = move_row(agent, AgentState.PAUSED, datetime.now(UTC))
            moved = Decision(Act.MOVE, "", "")
            await happened(session, agent, moved, actor=BUDGET, subject=AgentState.PAUSED.value, why=SPENT)
            deployments = [row.id for row in rows]
    if stops:
        data = {"owner": {"kind": "agent", "id": str(agent_id)}, "stopped": True, "why": why}
        budget = AgentEvent(
            event=EventKind.BUDGET, agent_id=agent_id, data={**data, "deployments": list(deployments)}
        )
        await tell(at.redis, at.app.keys, budget)
        state = AgentEvent(
            event=EventKind.STATE, agent_id=agent_id, data={**told, "by": BUDGET, "why": SPENT}
        )
        await tell(at.redis, at.app.keys, state)
    return stops
