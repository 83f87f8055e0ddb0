"""Budgets in SQL: set and listed, and moved within the transaction of who holds, settles or voids."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, and_, case, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.money_rows import BUDGETS, ENTRIES, HOLDS, budget_of, has_turned
from gaelp_tasks.models.money import PATHS, Account, Budget, HoldState, Move, Owner, OwnerKind, Period

__all__ = ["Budgets", "Holding", "lock", "lock_held"]

COLUMNS = {Account.AVAILABLE: "available_micro", Account.HELD: "held_micro", Account.SPENT: "spent_micro"}


async def lock(session: Session, owners: Collection[tuple[str, Owner]]) -> set[tuple[str, Owner]]:
    """Those of these, as (tenant, owner), that have a budget; none of them changes until this is over.

    For a transaction that holds several times: what is locked one by one, in an order of chance, may wait for
    one who waits for it.
    """
    if not owners:
        return set()
    asked = select(BUDGETS.c.id, BUDGETS.c.tenant, BUDGETS.c.owner_kind, BUDGETS.c.owner_id).where(
        BUDGETS.c.tenant.in_({tenant for tenant, _ in owners}),
        BUDGETS.c.owner_kind.in_({owner.kind.value for _, owner in owners}),
        BUDGETS.c.owner_id.in_({owner.id for _, owner in owners}),
    )
    rows = await session.execute(asked.order_by(BUDGETS.c.id).with_for_update())
    return {(row.tenant, Owner(OwnerKind(row.owner_kind), row.owner_id)) for row in rows} & set(owners)


async def lock_held(session: Session, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], Row[Any]]:
    """The holds of these, as (tenant, key), that are settled or voided together; their budgets are locked."""
    if not keys:
        return {}
    mine = (HOLDS.c.tenant.in_({tenant for tenant, _ in keys}), HOLDS.c.key.in_({key for _, key in keys}))
    rows = await session.execute(select(HOLDS).where(*mine).order_by(HOLDS.c.id).with_for_update())
    found = {(row.tenant, row.key): row for row in rows if (row.tenant, row.key) in keys}
    if found and session.get_bind().dialect.name != "sqlite":  # that lets one writer in
        on = select(ENTRIES.c.budget).where(ENTRIES.c.hold.in_([row.id for row in found.values()]))
        asked = select(BUDGETS.c.id).where(BUDGETS.c.id.in_(on))
        await session.execute(asked.order_by(BUDGETS.c.id).with_for_update())
    return found


class Budgets:
    """The budgets of one tenant; of all tenants, for who runs the cluster, with None."""

    def __init__(self, db: Database, tenant: str | None) -> None:
        self._db = db
        self._tenant = tenant

    async def listed(
        self, *, now: datetime, kind: OwnerKind | None = None, most: int, skip: int = 0
    ) -> list[Budget]:
        """Up to `most` of them, the oldest first, after `skip`. Raises DatabaseUnavailable."""
        asked = self._mine().order_by(BUDGETS.c.id).offset(skip).limit(most)
        if kind is not None:
            asked = asked.where(BUDGETS.c.owner_kind == kind.value)
        async with self._db.reading() as session:
            return [budget_of(row, now) for row in await session.execute(asked)]

    async def find(self, owner: Owner, *, now: datetime) -> list[Budget]:
        """That of this owner, of each tenant that is asked about. Raises DatabaseUnavailable."""
        async with self._db.reading() as session:
            rows = await session.execute(self._mine().where(_is(owner)).order_by(BUDGETS.c.id))
            return [budget_of(row, now) for row in rows]

    def _mine(self) -> Select[Any]:
        rows = select(BUDGETS)
        return rows if self._tenant is None else rows.where(BUDGETS.c.tenant == self._tenant)


class Holding:
    """What moves money, within the caller's transaction: rows are locked, budgets in one fixed order.

    A transaction that holds or settles several times calls `lock` or `lock_held` before.
    """

    def __init__(self, session: Session, tenant: str, now: datetime) -> None:
        self._session = session
        self._tenant = tenant
        self._now = now

    async def set(self, owner: Owner, limit_micro: int, period: Period | None, by: str) -> Budget:
        """Make the budget or change it: what was spent and is held stays so; None: its period too."""
        await self._session.execute(
            _insert(self._session, BUDGETS)
            .values(
                tenant=self._tenant,
                owner_kind=owner.kind.value,
                owner_id=owner.id,
                available_micro=0,
                held_micro=0,
                spent_micro=0,
                period=(period or Period.NONE).value,
                period_start=None if period is None else period.start(self._now),
                updated_at=self._now,
            )
            .on_conflict_do_nothing()
        )
        [row] = await self.budgets([owner])
        more = limit_micro - (row.available_micro + row.held_micro + row.spent_micro)
        if more:
            await self.move([row.id], Move.GRANT if more > 0 else Move.WITHDRAW, abs(more), by=by)
        if period is not None and row.period != period.value:
            values = {"period": period.value, "period_start": period.start(self._now)}
            await self._session.execute(update(BUDGETS).where(BUDGETS.c.id == row.id).values(values))
        [row] = (await self._session.execute(select(BUDGETS).where(BUDGETS.c.id == row.id))).all()
        return budget_of(row, self._now)

    async def given_by_others(self, owner: Owner, name: str) -> int | None:
        """The limit as somebody else than this one has last set it; None: nobody else has."""
        of = select(BUDGETS.c.id).where(BUDGETS.c.tenant == self._tenant, _is(owner)).scalar_subquery()
        signs = {Move.GRANT.value: ENTRIES.c.amount_micro, Move.WITHDRAW.value: -ENTRIES.c.amount_micro}
        sets = (ENTRIES.c.budget == of, ENTRIES.c.move.in_(signs))
        last = select(func.max(ENTRIES.c.id)).where(*sets, ENTRIES.c.made_by != name).scalar_subquery()
        asked = select(func.sum(case(signs, value=ENTRIES.c.move))).where(*sets, ENTRIES.c.id <= last)
        limit_micro = await self._session.scalar(asked)
        return None if limit_micro is None else int(limit_micro)

    async def begin(self, key: str, owners: Iterable[Owner], bound_micro: int) -> int | None:
        """Write down a hold; its id, None where there is one of this key already."""
        named = {owner.kind: owner.id for owner in owners}
        made = await self._session.execute(
            _insert(self._session, HOLDS)
            .values(
                tenant=self._tenant,
                key=key,
                agent=named.get(OwnerKind.AGENT, ""),
                user_name=named.get(OwnerKind.USER, ""),
                job=named.get(OwnerKind.JOB, ""),
                state=HoldState.HELD.value,
                bound_micro=bound_micro,
                spent_micro=0,
                held_at=self._now,
            )
            .on_conflict_do_nothing()
            .returning(HOLDS.c.id)
        )
        found: int | None = made.scalar_one_or_none()
        return found

    async def hold(self, key: str) -> Row[Any] | None:
        """The hold of this key, locked; None where there is none."""
        asked = select(HOLDS).where(HOLDS.c.tenant == self._tenant, HOLDS.c.key == key)
        return (await self._session.execute(asked.with_for_update())).one_or_none()

    async def lower(self, hold: int, bound_micro: int) -> None:
        """It is for less than it was begun with."""
        await self._session.execute(update(HOLDS).where(HOLDS.c.id == hold).values(bound_micro=bound_micro))

    async def note(self, key: str, *, most_prompt_tokens: int, most_tokens: int) -> None:
        """What can be reported of the work of this key."""
        values = {"most_prompt_tokens": most_prompt_tokens, "most_tokens": most_tokens}
        mine = (HOLDS.c.tenant == self._tenant, HOLDS.c.key == key)
        await self._session.execute(update(HOLDS).where(*mine).values(values))

    async def end(self, hold: int, state: HoldState, *, asked_micro: int | None, spent_micro: int) -> None:
        """It is held no more."""
        ended = {"asked_micro": asked_micro, "spent_micro": spent_micro, "ended_at": self._now}
        await self._session.execute(
            update(HOLDS).where(HOLDS.c.id == hold).values(state=state.value, **ended)
        )

    async def budgets(self, owners: Sequence[Owner]) -> list[Row[Any]]:
        """Those of these owners that have one, locked, in a new period where one has begun."""
        if not owners:
            return []
        mine = BUDGETS.c.tenant == self._tenant
        return await self._locked(select(BUDGETS).where(mine, or_(*(_is(owner) for owner in owners))))

    async def budgets_of(self, hold: int) -> list[Row[Any]]:
        """The same for those that a hold was made on."""
        on = select(ENTRIES.c.budget).where(ENTRIES.c.hold == hold, ENTRIES.c.move == Move.HOLD.value)
        return await self._locked(select(BUDGETS).where(BUDGETS.c.id.in_(on)))

    async def _locked(self, asked: Select[Any]) -> list[Row[Any]]:
        in_order = asked.order_by(BUDGETS.c.id).with_for_update()
        rows = list((await self._session.execute(in_order)).all())
        turned = [row for row in rows if has_turned(row, self._now)]
        if not turned:
            return rows
        for row in turned:
            if row.spent_micro:
                await self.move([row.id], Move.TURN, row.spent_micro)
            start = Period(row.period).start(self._now)
            begun = update(BUDGETS).where(BUDGETS.c.id == row.id).values(period_start=start)
            await self._session.execute(begun)
        return list((await self._session.execute(in_order)).all())

    async def move(
        self, budgets: Sequence[int], move: Move, amount_micro: int, *, hold: int | None = None, by: str = ""
    ) -> None:
        """Move this much in each of these, which are locked; nothing where it is 0."""
        if not budgets or not amount_micro:
            return
        source, target = PATHS[move]
        values: dict[str, Any] = {"updated_at": self._now}
        if source in COLUMNS:
            values[COLUMNS[source]] = BUDGETS.c[COLUMNS[source]] - amount_micro
        if target in COLUMNS:
            values[COLUMNS[target]] = BUDGETS.c[COLUMNS[target]] + amount_micro
        await self._session.execute(update(BUDGETS).where(BUDGETS.c.id.in_(budgets)).values(values))
        entry = {"hold": hold, "move": move.value, "amount_micro": amount_micro, "at": self._now}
        entries = [{"budget": budget, "made_by": by, **entry} for budget in budgets]
        await self._session.execute(insert(ENTRIES).values(entries))


def _is(owner: Owner) -> Any:
    return and_(BUDGETS.c.owner_kind == owner.kind.value, BUDGETS.c.owner_id == owner.id)


def _insert(session: Session, table: Any) -> Any:
    of = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    return of(table)
