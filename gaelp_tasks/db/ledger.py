"""What was paid for, line by line and in sums, and what moved in budgets."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, Select, case, delete, func, insert, select, type_coerce
from sqlalchemy.types import String

from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.money_rows import BUDGETS, COSTS, ENTRIES, HOLDS
from gaelp_tasks.models.ledger import CostLine, CostSum, Entry, Group, Which
from gaelp_tasks.models.money import PATHS, Account, Charge, CostKind, HoldState, Move, Owner

__all__ = ["Ledger", "Unpaid", "prune_unpaid", "write_costs", "write_unpaid", "wrong_balances"]

DAY = {"sqlite": 10, "postgresql": "YYYY-MM-DD"}  #: characters of SQLite's text, and PostgreSQL's pattern
AT_ONCE = 500  #: bills deleted in one transaction
MONTH = {"sqlite": 7, "postgresql": "YYYY-MM"}


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


class Unpaid(NamedTuple):
    """The bill of something for which nothing was held."""

    tenant: str
    key: str
    user: str
    charges: tuple[Charge, ...]


async def write_unpaid(session: Session, unpaid: Sequence[Unpaid], *, now: datetime) -> None:
    """Bills that no budget pays, of keys that are new; in two statements, however many."""
    if not unpaid:
        return
    spent = {(one.tenant, one.key): sum(line.amount_micro for line in one.charges) for one in unpaid}
    nobody = {"agent": "", "job": "", "state": HoldState.SETTLED.value, "held_at": now, "ended_at": now}
    holds = [
        {
            "tenant": one.tenant,
            "key": one.key,
            "user_name": one.user,
            "bound_micro": spent[one.tenant, one.key],
            "asked_micro": spent[one.tenant, one.key],
            "spent_micro": spent[one.tenant, one.key],
            **nobody,
        }
        for one in unpaid
    ]
    made = await session.execute(insert(HOLDS).returning(HOLDS.c.id, HOLDS.c.tenant, HOLDS.c.key), holds)
    ids = {(row.tenant, row.key): row.id for row in made}
    costs = [
        {
            "tenant": one.tenant,
            "hold": ids[one.tenant, one.key],
            "agent": "",
            "user_name": one.user,
            "job": "",
            "kind": line.kind.value,
            "quantity": line.quantity,
            "amount_micro": line.amount_micro,
            "at": now,
        }
        for one in unpaid
        for line in one.charges
    ]
    if costs:
        await session.execute(insert(COSTS), costs)


async def prune_unpaid(session: Session, before: datetime) -> int:
    """Delete some bills that no budget has paid and that ended before this moment; how many, 0 at the end."""
    paid = select(ENTRIES.c.id).where(ENTRIES.c.hold == HOLDS.c.id).exists()
    asked = select(HOLDS.c.id).where(HOLDS.c.ended_at < before, ~paid).order_by(HOLDS.c.id).limit(AT_ONCE)
    ids = (await session.scalars(asked)).all()
    if ids:
        await session.execute(delete(COSTS).where(COSTS.c.hold.in_(ids)))
        await session.execute(delete(HOLDS).where(HOLDS.c.id.in_(ids)))
    return len(ids)


class Ledger:
    """Costs and entries of one tenant; of all tenants, for who runs the cluster, with None."""

    def __init__(self, db: Database, tenant: str | None) -> None:
        self._db = db
        self._tenant = tenant

    async def lines(self, which: Which, *, most: int, skip: int = 0) -> list[CostLine]:
        """Up to `most` lines that are meant, the newest first, after `skip`. Raises DatabaseUnavailable."""
        asked = select(COSTS, HOLDS.c.key).join(HOLDS, HOLDS.c.id == COSTS.c.hold)
        newest = self._meant(asked, which).order_by(COSTS.c.at.desc(), COSTS.c.id.desc())
        async with self._db.reading() as session:
            return [_line(row) for row in await session.execute(newest.offset(skip).limit(most))]

    async def sums(self, which: Which, by: Sequence[Group], *, most: int, skip: int = 0) -> list[CostSum]:
        """What the lines that are meant add up to, one sum for each group. Raises DatabaseUnavailable.

        Without `by` there is one sum, of everything.
        """
        async with self._db.reading() as session:
            groups = {group: _column(group, session.get_bind().dialect.name) for group in dict.fromkeys(by)}
            amount = func.coalesce(func.sum(COSTS.c.amount_micro), 0)
            quantity = func.coalesce(func.sum(COSTS.c.quantity), 0)
            named = [column.label(f"by_{group}") for group, column in groups.items()]
            asked = self._meant(select(*named, amount.label("amount"), quantity.label("quantity")), which)
            if groups:
                asked = asked.group_by(*groups.values()).order_by(*groups.values())
            rows = await session.execute(asked.offset(skip).limit(most))
            return [
                CostSum(
                    **{group.value: getattr(row, f"by_{group}") for group in groups},
                    amount_micro=int(row.amount),
                    quantity=int(row.quantity) if Group.KIND in groups else None,
                )
                for row in rows
            ]

    async def entries(self, owner: Owner, *, most: int, skip: int = 0) -> list[Entry]:
        """What moved in the budget of this owner, the newest first. Raises DatabaseUnavailable."""
        asked = (
            select(ENTRIES, HOLDS.c.key)
            .join(BUDGETS, BUDGETS.c.id == ENTRIES.c.budget)
            .outerjoin(HOLDS, HOLDS.c.id == ENTRIES.c.hold)
            .where(BUDGETS.c.owner_kind == owner.kind.value, BUDGETS.c.owner_id == owner.id)
            .order_by(ENTRIES.c.id.desc())
        )
        if self._tenant is not None:
            asked = asked.where(BUDGETS.c.tenant == self._tenant)
        async with self._db.reading() as session:
            return [_entry(row) for row in await session.execute(asked.offset(skip).limit(most))]

    def _meant(self, asked: Select[Any], which: Which) -> Select[Any]:
        named = {"agent": which.agent, "user_name": which.user, "job": which.job, "kind": which.kind}
        found = [COSTS.c[name] == value for name, value in named.items() if value]
        if self._tenant is not None:
            found.append(COSTS.c.tenant == self._tenant)
        if which.since is not None:
            found.append(COSTS.c.at >= which.since)
        if which.until is not None:
            found.append(COSTS.c.at < which.until)
        return asked.where(*found)


async def wrong_balances(session: Session) -> list[str]:
    """A word on each budget whose entries do not add up to its balances, and on each bill that does not.

    Each of both is one question, so that it sees one moment also where others write.
    """
    sums = {account: _sum_of(account) for account in Account if account is not Account.OUTSIDE}
    columns = [_total(sums[account], account) for account in sums]
    wrong = [BUDGETS.c[f"{account.value}_micro"] != _total(sums[account], account) for account in sums]
    off = select(BUDGETS, *columns).where(wrong[0] | wrong[1] | wrong[2])
    found = [f"budget {row.owner_kind} {row.owner_id}: {tuple(row)}" for row in await session.execute(off)]
    billed = (
        select(func.coalesce(func.sum(COSTS.c.amount_micro), 0))
        .where(COSTS.c.hold == HOLDS.c.id)
        .scalar_subquery()
    )
    bad = select(HOLDS.c.key, HOLDS.c.spent_micro, billed).where(HOLDS.c.spent_micro != billed)
    return found + [f"bill of {row.key}: {tuple(row)}" for row in await session.execute(bad)]


def _sum_of(account: Account) -> ColumnElement[Any]:
    into = [move.value for move, (_, target) in PATHS.items() if target is account]
    out = [move.value for move, (source, _) in PATHS.items() if source is account]
    amount = ENTRIES.c.amount_micro
    return func.sum(case((ENTRIES.c.move.in_(into), amount), (ENTRIES.c.move.in_(out), -amount), else_=0))


def _total(summed: ColumnElement[Any], account: Account) -> Any:
    asked = select(func.coalesce(summed, 0)).where(ENTRIES.c.budget == BUDGETS.c.id)
    return asked.scalar_subquery().label(f"sum_{account.value}")


def _column(group: Group, dialect: str) -> ColumnElement[Any]:
    match group:
        case Group.DAY | Group.MONTH:
            form: Any = (DAY if group is Group.DAY else MONTH)[dialect]
            if dialect == "sqlite":
                return func.substr(type_coerce(COSTS.c.at, String), 1, form)
            return func.to_char(func.timezone("UTC", COSTS.c.at), form)
        case Group.USER:
            return COSTS.c.user_name
        case _:
            return COSTS.c[group.value]


def _line(row: Any) -> CostLine:
    return CostLine(
        id=row.id,
        at=row.at,
        tenant=row.tenant,
        key=row.key,
        agent=row.agent,
        user=row.user_name,
        job=row.job,
        kind=CostKind(row.kind),
        quantity=row.quantity,
        amount_micro=row.amount_micro,
    )


def _entry(row: Any) -> Entry:
    move = Move(row.move)
    source, target = PATHS[move]
    return Entry(
        id=row.id,
        at=row.at,
        move=move,
        source=source,
        target=target,
        amount_micro=row.amount_micro,
        key=row.key or "",
        by=row.made_by,
    )
