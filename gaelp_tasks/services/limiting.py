"""Budgets that admins set: each stands in the audit, and those of agents are decided about."""

from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Session
from gaelp_tasks.errors import NotFound
from gaelp_tasks.models.audit import Deed
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.ledger import NewBudget
from gaelp_tasks.models.money import Budget, Owner, OwnerKind, units
from gaelp_tasks.models.policy import Act
from gaelp_tasks.services.agents import asked_of, raises_approved_budget, spec_of
from gaelp_tasks.services.audit import done, judge, trail
from gaelp_tasks.services.budgets import set_budget
from gaelp_tasks.services.place import At

__all__ = ["set_by"]

LONGEST_ID = 18  #: digits that fit into a column


async def set_by(at: At, caller: Caller, owner: Owner, new: NewBudget, tenant: str | None) -> Budget:
    """Make a budget, or change it, for somebody who asks.

    Raises NotAllowed; for that of an agent NotFound, PolicyViolated, and Conflict where it is terminated.
    """
    whose = caller.acting_for(tenant)
    async with trail(at.db) as session:
        if owner.kind is OwnerKind.AGENT:
            await _judge(session, at, caller, owner, new, whose)
        else:
            subject = f"{owner.kind} {owner.id}: {_told(new)}"
            await done(session, caller, Deed.SET_BUDGET, subject, tenant=whose)
        return await set_budget(
            session, owner, new.limit_micro, tenant=whose, by=caller.name, period=new.period
        )


async def _judge(session: Session, at: At, caller: Caller, owner: Owner, new: NewBudget, tenant: str) -> None:
    """Raises NotFound for an id that no agent has: a later one of it would come by this budget."""
    row = None
    if _is_number(owner.id):
        row = await Agents(session, tenant).row(int(owner.id), lock=True)
    if row is None:
        raise NotFound(f"There is no agent {owner.id}.")
    spec = (await spec_of(session, row)).spec
    raises = await raises_approved_budget(session, row, spec, new.limit_micro, keeps=True)
    asked = asked_of(caller, row, spec, at.settings)._replace(raises_budget=raises)
    await judge(session, caller, Act.SET_BUDGET, asked, agent=row, subject=_told(new))


def _told(new: NewBudget) -> str:
    often = "" if new.period.value == "none" else f" each {new.period}"
    return f"{units(new.limit_micro)}{often}"


def _is_number(text: str) -> bool:
    """As it is written in budgets: 05 would be another owner than agent 5."""
    return text.isascii() and text.isdigit() and len(text) <= LONGEST_ID and not text.startswith("0")
