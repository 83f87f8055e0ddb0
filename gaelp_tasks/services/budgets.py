"""What work may cost is held before it begins, and settled or voided once when it has ended.

All of it happens inside the caller's transaction, beside the rows that say what became of the work: either
both are there or neither. Quotas are held before budgets wherever both are.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from gaelp_tasks.db.budgets import Budgets, Holding
from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.ledger import Unpaid, prune_unpaid, write_costs, write_unpaid
from gaelp_tasks.errors import BudgetExceeded, Conflict, NotFound, PolicyViolated
from gaelp_tasks.failpoints import reach
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.money import Budget, Charge, HoldState, Move, Owner, OwnerKind, Period, closing, units
from gaelp_tasks.services.ageing import throw_away

__all__ = [
    "hold",
    "hold_up_to",
    "prune",
    "record",
    "refuse_unpaid",
    "set_budget",
    "settle",
    "show",
    "void",
]


async def hold(
    session: Session,
    key: str,
    owners: Sequence[Owner],
    amount_micro: int,
    *,
    tenant: str,
    spared: Sequence[Owner] = (),
    now: datetime | None = None,
) -> bool:
    """Keep this much of the budget of every owner that has one: all of them, or none; False: it was held.

    `owners` names at most one of each kind; they stand in the ledger also without a budget, and
    those that are `spared` with a budget that stays as it is. Raises BudgetExceeded, which has to end the
    transaction; Conflict where the work of this key has ended, or was held for another amount.
    """
    at = Holding(session, tenant, now or datetime.now(UTC))
    made, _ = await _hold(at, key, owners, amount_micro, amount_micro, spared)
    return made


async def hold_up_to(
    session: Session,
    key: str,
    owners: Sequence[Owner],
    least_micro: int,
    most_micro: int,
    *,
    tenant: str,
    spared: Sequence[Owner] = (),
    now: datetime | None = None,
) -> int:
    """The same for as much as every budget has, from `least_micro` to `most_micro`; how much is held now."""
    at = Holding(session, tenant, now or datetime.now(UTC))
    _, held = await _hold(at, key, owners, least_micro, most_micro, spared)
    return held


async def _hold(
    at: Holding,
    key: str,
    owners: Sequence[Owner],
    least_micro: int,
    most_micro: int,
    spared: Sequence[Owner],
) -> tuple[bool, int]:
    if not 0 <= least_micro <= most_micro or len({owner.kind for owner in owners}) < len(owners):
        raise ValueError("a hold is 0 or more, of one agent, one user and one job at most")
    made = await at.begin(key, owners, most_micro)
    if made is None:
        found = await at.hold(key)
        fits = found is not None and least_micro <= found.bound_micro <= most_micro
        if found is None or not fits or found.state != HoldState.HELD:
            raise Conflict(f"{key} was paid for already, or is held for another amount.")
        return False, found.bound_micro
    budgets = await at.budgets([owner for owner in owners if owner not in spared])
    if short := [row for row in budgets if row.available_micro < least_micro]:
        row = min(short, key=lambda one: one.owner_kind)  # the agent's before others: it may have to stop
        owner = f"{row.owner_kind} {row.owner_id}"
        left, least = units(max(row.available_micro, 0)), units(least_micro)
        raise BudgetExceeded(
            f"The budget of {owner} has {left} left, and this may cost up to {least}.", owner=owner
        )
    reach("hold:begun")
    amount_micro = min([most_micro, *(row.available_micro for row in budgets)])
    if amount_micro < most_micro:
        await at.lower(made, amount_micro)
    await at.move([row.id for row in budgets], Move.HOLD, amount_micro, hold=made)
    reach("hold:moved")
    return True, amount_micro


async def settle(
    session: Session,
    key: str,
    spent_micro: int,
    charges: Sequence[Charge] = (),
    *,
    tenant: str,
    now: datetime | None = None,
) -> bool:
    """Pay what the work has cost, and give the rest back; whether this was the first end of that hold.

    More than the bound is not paid: the ledger says so. Raises NotFound where nothing was held.
    """
    at = Holding(session, tenant, now or datetime.now(UTC))
    row = await at.hold(key)
    if row is None:
        raise NotFound(f"Nothing is held for {key}.")
    if row.state != HoldState.HELD:
        return False
    paid, lines = closing(row.bound_micro, spent_micro, charges)
    budgets = [budget.id for budget in await at.budgets_of(row.id)]
    await at.move(budgets, Move.SETTLE, paid, hold=row.id)
    reach("settle:paid")
    await at.move(budgets, Move.RELEASE, row.bound_micro - paid, hold=row.id)
    reach("settle:released")
    await write_costs(session, row, lines, now=now or datetime.now(UTC))
    reach("settle:billed")
    await at.end(row.id, HoldState.SETTLED, asked_micro=spent_micro, spent_micro=paid)
    reach("settle:ended")
    return True


async def record(session: Session, unpaid: Sequence[Unpaid], *, now: datetime | None = None) -> None:
    """Write down what was paid for though nothing was held: no budget pays. Their keys are new."""
    await write_unpaid(session, unpaid, now=now or datetime.now(UTC))


async def prune(db: Database, keep_s: float, *, now: datetime | None = None) -> int:
    """Throw away bills that no budget has paid and that are older; 0: none. Raises DatabaseUnavailable.

    What a budget has paid stays: its balances are the sum of its entries.
    """
    return await throw_away(db, keep_s, prune_unpaid, now=now)


async def void(session: Session, key: str, *, tenant: str, now: datetime | None = None) -> bool:
    """Give back all that was held; whether this was the first end of that hold. False where there is none."""
    at = Holding(session, tenant, now or datetime.now(UTC))
    row = await at.hold(key)
    if row is None or row.state != HoldState.HELD:
        return False
    budgets = [budget.id for budget in await at.budgets_of(row.id)]
    await at.move(budgets, Move.RELEASE, row.bound_micro, hold=row.id)
    reach("void:released")
    await at.end(row.id, HoldState.VOIDED, asked_micro=None, spent_micro=0)
    return True


async def set_budget(
    session: Session,
    owner: Owner,
    limit_micro: int,
    *,
    tenant: str,
    by: str,
    period: Period | None = Period.NONE,
    now: datetime | None = None,
) -> Budget:
    """Make the budget of this owner, or change it; 0: nothing may be spent from now on.

    `period` None: as it was, for good where there was none. A limit below what is held and spent ends nothing
    that runs: nothing more is held until it fits.
    """
    return await Holding(session, tenant, now or datetime.now(UTC)).set(owner, limit_micro, period, by)


async def refuse_unpaid(db: Database, caller: Caller, tenant: str, what: str) -> None:
    """Raises PolicyViolated where a budget bounds what the caller may spend: nobody pays for this work."""
    if await Budgets(db, tenant).find(Owner(OwnerKind.USER, caller.name), now=datetime.now(UTC)):
        raise PolicyViolated(
            f"{what} are not paid for, so who has a budget may not make them: {caller.name} has one. Send "
            "invocations, or a batch."
        )


async def show(db: Database, tenant: str, owner: Owner) -> Budget:
    """The budget of this owner. Raises NotFound."""
    found = await Budgets(db, tenant).find(owner, now=datetime.now(UTC))
    if not found:
        raise NotFound(f"There is no budget of {owner}.")
    return found[0]
