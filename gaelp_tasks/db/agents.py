"""Agents in SQL: what stands in their rows, their versions that are written once, their sealed secrets."""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, delete, func, select, update

from gaelp_tasks.db.agent_rows import AgentRow, SecretRow, VersionRow
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.models.agent import (
    TERMINAL,
    USABLE,
    Agent,
    AgentSpec,
    AgentState,
    AgentType,
    AgentVersion,
)

__all__ = ["Agents", "Which", "lock", "shown"]


class Which(NamedTuple):
    """Those that are meant; None stands for any, but no status leaves out those that are terminated."""

    status: AgentState | None = None
    type: AgentType | None = None
    name: str | None = None
    owner: str | None = None


async def lock(session: Session, ids: Collection[int]) -> None:
    """Nobody else changes these until the transaction is over; all at once, or two wait for each other."""
    if ids:
        asked = select(AgentRow.id).where(AgentRow.id.in_(ids)).order_by(AgentRow.id)
        await session.execute(asked.with_for_update())


SHOWN = (
    select(*AgentRow.__table__.c, VersionRow.author, VersionRow.spec, SecretRow.name.label("secret"))
    .join(VersionRow, (VersionRow.agent == AgentRow.id) & (VersionRow.number == AgentRow.version))
    .outerjoin(SecretRow, SecretRow.agent == AgentRow.id)
    .where(AgentRow.id == bindparam("agent"))
    .order_by(SecretRow.name)
)
SHOWN_TO = SHOWN.where(AgentRow.tenant == bindparam("tenant"))


async def shown(db: Database, tenant: str | None, agent_id: int) -> Agent | None:
    """One agent of a tenant as it is shown, of any with None; None where there is none."""
    if tenant is None:
        rows = await db.ask(SHOWN, {"agent": agent_id})
    else:
        rows = await db.ask(SHOWN_TO, {"agent": agent_id, "tenant": tenant})
    return _agent(rows[0], rows[0], [row.secret for row in rows if row.secret]) if rows else None


class Agents:
    """The agents of one tenant within a transaction; of all tenants, for admins, with None."""

    def __init__(self, session: Session, tenant: str | None) -> None:
        self._session = session
        self._tenant = tenant

    async def add(self, spec: AgentSpec, *, tenant: str, owner: str, now: datetime) -> AgentRow:
        """Keep a new one, with its first version."""
        row = AgentRow(
            tenant=tenant,
            owner=owner,
            name=spec.name,
            type=spec.type.value,
            state=AgentState.PENDING.value,
            version=0,
            created_at=now,
            updated_at=now,
        )
        self._session.add(row)
        await self._session.flush()
        self.add_version(row, spec, author=owner, now=now)
        return row

    def add_version(
        self, row: AgentRow, spec: AgentSpec, *, author: str, now: datetime, again: int | None = None
    ) -> None:
        """Make it the newest of an agent that is locked; `again` is the version that it rolls back to."""
        row.version += 1
        row.name, row.updated_at = spec.name, now
        version = VersionRow(
            agent=row.id,
            number=row.version,
            tenant=row.tenant,
            author=author,
            created_at=now,
            rolled_back_to=again,
            spec=spec.kept(),
        )
        self._session.add(version)

    async def row(self, agent_id: int, *, lock: bool = False) -> AgentRow | None:
        """The one of this id; with `lock` nobody else changes it until the transaction is over."""
        asked = self._mine(select(AgentRow), AgentRow.tenant).where(AgentRow.id == agent_id)
        if lock:
            asked = asked.with_for_update().execution_options(populate_existing=True)
        return (await self._session.scalars(asked)).one_or_none()

    async def version(self, agent_id: int, number: int) -> AgentVersion | None:
        """One version."""
        asked = self._versions(agent_id).where(VersionRow.number == number)
        row = (await self._session.scalars(asked)).one_or_none()
        return None if row is None else _version(row)

    async def versions(self, agent_id: int, *, most: int, skip: int = 0) -> list[AgentVersion]:
        """Up to `most`, the newest first, after `skip`."""
        asked = self._versions(agent_id).order_by(VersionRow.number.desc()).offset(skip).limit(most)
        return [_version(row) for row in await self._session.scalars(asked)]

    async def lineage(self, agent_id: int, number: int) -> dict[int, tuple[str, int | None]]:
        """Of each version up to this one its author, and the version that it rolls back to."""
        asked = self._mine(
            select(VersionRow.number, VersionRow.author, VersionRow.rolled_back_to), VersionRow.tenant
        ).where(VersionRow.agent == agent_id, VersionRow.number <= number)
        return {row.number: (row.author, row.rolled_back_to) for row in await self._session.execute(asked)}

    async def listed(self, which: Which, *, most: int, skip: int = 0) -> list[Agent]:
        """Up to `most` that are meant, the oldest first, after `skip`."""
        rows = self._mine(select(AgentRow), AgentRow.tenant)
        if which.status is None:
            rows = rows.where(AgentRow.state.not_in([state.value for state in TERMINAL]))
        else:
            rows = rows.where(AgentRow.state == which.status.value)
        for column, value in (
            (AgentRow.type, which.type),
            (AgentRow.name, which.name),
            (AgentRow.owner, which.owner),
        ):
            if value is not None:
                rows = rows.where(column == str(value))
        some = list(await self._session.scalars(rows.order_by(AgentRow.id).offset(skip).limit(most)))
        return await self.told(some)

    async def told(self, rows: Iterable[AgentRow]) -> list[Agent]:
        """Agents as they are shown, with their newest versions and the names of their secrets."""
        some = list(rows)
        ids = [row.id for row in some]
        newest = select(VersionRow).join(
            AgentRow, (AgentRow.id == VersionRow.agent) & (AgentRow.version == VersionRow.number)
        )
        asked = self._mine(newest, VersionRow.tenant).where(VersionRow.agent.in_(ids))
        versions = {row.agent: row for row in await self._session.scalars(asked)}
        names: dict[int, list[str]] = {}
        secrets = self._mine(select(SecretRow.agent, SecretRow.name), SecretRow.tenant)
        for agent, name in await self._session.execute(
            secrets.where(SecretRow.agent.in_(ids)).order_by(SecretRow.name)
        ):
            names.setdefault(agent, []).append(name)
        return [_agent(row, versions[row.id], names.get(row.id, ())) for row in some]

    async def counts(self) -> tuple[int, int]:
        """How many there are that are not terminated, and how many of them may be called."""
        rows = self._mine(select(AgentRow.state, func.count()), AgentRow.tenant).group_by(AgentRow.state)
        found: dict[str, int] = {row[0]: row[1] for row in await self._session.execute(rows)}
        total = sum(number for state, number in found.items() if AgentState(state) not in TERMINAL)
        return total, sum(found.get(state.value, 0) for state in USABLE)

    # --- secrets --------------------------------------------------------------------------

    async def sealed(self, agent_id: int) -> dict[str, str]:
        """Its secrets by their names, sealed."""
        asked = self._mine(select(SecretRow), SecretRow.tenant).where(SecretRow.agent == agent_id)
        return {row.name: row.sealed for row in await self._session.scalars(asked)}

    async def ids_with_secrets(self, *, after: int, most: int) -> list[int]:
        """The ids of agents that have some, in their order."""
        asked = self._mine(select(SecretRow.agent).distinct(), SecretRow.tenant).where(
            SecretRow.agent > after
        )
        return list(await self._session.scalars(asked.order_by(SecretRow.agent).limit(most)))

    async def secret_authors(self, agent_id: int) -> set[str]:
        """Those who have set the secrets that it has; '' among them where nobody is known."""
        asked = self._mine(select(SecretRow.author).distinct(), SecretRow.tenant)
        return set(await self._session.scalars(asked.where(SecretRow.agent == agent_id)))

    async def keep_secrets(self, row: AgentRow, sealed: Mapping[str, str], now: datetime, *, by: str) -> None:
        """Put these in the place of those of the same names; the agent is locked."""
        for name, text in sealed.items():
            made = SecretRow(
                agent=row.id, name=name, tenant=row.tenant, author=by, sealed=text, changed_at=now
            )
            await self._session.merge(made)
            row.secrets_by = by
        row.updated_at = now

    async def reseal(self, row: AgentRow, sealed: Mapping[str, str]) -> None:
        """The same secrets under another key; the agent is locked."""
        for name, text in sealed.items():
            ours = update(SecretRow).where(SecretRow.agent == row.id, SecretRow.name == name)
            await self._session.execute(ours.values(sealed=text))

    async def remove_secrets(self, row: AgentRow, name: str | None = None) -> int:
        """Take away the one of this name, None: all; how many were there."""
        mine = delete(SecretRow).where(SecretRow.agent == row.id, SecretRow.tenant == row.tenant)
        done: Any = await self._session.execute(mine if name is None else mine.where(SecretRow.name == name))
        return int(done.rowcount)

    def _versions(self, agent_id: int) -> Any:
        return self._mine(select(VersionRow), VersionRow.tenant).where(VersionRow.agent == agent_id)

    def _mine(self, rows: Any, tenant: Any) -> Any:
        return rows if self._tenant is None else rows.where(tenant == self._tenant)


def _version(row: VersionRow) -> AgentVersion:
    return AgentVersion(
        agent_id=row.agent,
        version=row.number,
        author=row.author,
        created_at=row.created_at,
        rolled_back_to=row.rolled_back_to,
        spec=AgentSpec.read(row.spec),
    )


def _agent(row: AgentRow | Row[Any], version: VersionRow | Row[Any], secrets: Iterable[str]) -> Agent:
    spec = AgentSpec.read(version.spec)
    return Agent(
        **{name: getattr(spec, name) for name in AgentSpec.model_fields},
        id=row.id,
        tenant=row.tenant,
        owner=row.owner,
        status=AgentState(row.state),
        version=row.version,
        author=version.author,
        secrets=tuple(secrets),
        created_at=row.created_at,
        updated_at=row.updated_at,
        ended_at=row.ended_at,
    )
