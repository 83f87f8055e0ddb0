"""What a user holds of the machines: taken all at once under a key, and given back once.

It happens inside the caller's transaction, beside the row of the work that holds it.
"""

from datetime import UTC, datetime

from gaelp_tasks.db.database import Database, Session
from gaelp_tasks.db.quotas import QuotaHolding, Quotas, limits_of
from gaelp_tasks.errors import NotAllowed, QuotaExceeded
from gaelp_tasks.models.audit import Deed
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.quota import Limits, NewLimits, QuotaShown, QuotaStanding, Share
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.services.audit import done
from gaelp_tasks.settings import Settings

__all__ = ["default_limits", "hold", "listed", "release", "set_by", "set_limits", "show", "shown_to"]


def default_limits(settings: Settings) -> Share:
    """Of a user that has no limits of his own."""
    return Share(
        cpu_milli=settings.quota_cpu_milli,
        memory_bytes=int(settings.quota_memory),
        gpus=settings.quota_gpus,
        storage_bytes=int(settings.quota_storage),
        runs=settings.quota_runs,
    )


async def hold(
    session: Session,
    key: str,
    user: str,
    resources: Resources,
    *,
    tenant: str,
    settings: Settings,
    runs: int = 1,
    now: datetime | None = None,
) -> bool:
    """Take all of this, or nothing; False where it is held under this key already.

    Raises QuotaExceeded: `never` says that it is more than the whole quota, and waiting does not help.
    """
    at = QuotaHolding(session, tenant)
    row = await at.quota(user)
    if await at.find(key) is not None:
        return False
    wanted = Share.of(resources, runs=runs)
    limit = limits_of(row).over(default_limits(settings))
    if more := wanted.beyond(limit):
        raise QuotaExceeded(
            f"It asks for more {_listed(more)} than the whole quota of {user}: it would never fit.",
            never=True,
        )
    if more := wanted.plus(await at.held(row.id)).beyond(limit):
        raise QuotaExceeded(f"The quota of {user} has not enough {_listed(more)} left now: it may fit later.")
    await at.take(row.id, key, wanted, now or datetime.now(UTC))
    return True


async def release(session: Session, key: str, *, tenant: str) -> bool:
    """Give back what is held under this key; whether there was something."""
    return await QuotaHolding(session, tenant).give_back(key)


async def set_limits(session: Session, user: str, limits: Limits, *, tenant: str) -> None:
    """Change the limits of a user. What he holds already stays his, also where it is more now."""
    await QuotaHolding(session, tenant).set(user, limits)


async def show(db: Database, tenant: str, user: str, settings: Settings) -> QuotaStanding:
    """The quota of a user as it stands; the defaults, and nothing held, of one who was never seen."""
    default = default_limits(settings)
    found = await Quotas(db, tenant, default).listed(user=user, most=1)
    return found[0] if found else QuotaStanding(tenant, user, Limits(), default, Share())


def shown(standing: QuotaStanding) -> QuotaShown:
    """As the API tells it."""
    return QuotaShown(
        user=standing.user,
        tenant=standing.tenant,
        own=standing.own,
        limit=standing.limit._asdict(),
        held=standing.held._asdict(),
    )


async def listed(
    db: Database, caller: Caller, settings: Settings, *, most: int, skip: int
) -> list[QuotaShown]:
    """The quotas that the caller may see: its own, and those of its tenant from operator on."""
    user = None if caller.role.covers(Role.OPERATOR) else caller.name
    quotas = Quotas(db, caller.scope, default_limits(settings))
    return [shown(one) for one in await quotas.listed(user=user, most=most, skip=skip)]


async def shown_to(
    db: Database, caller: Caller, user: str, tenant: str | None, settings: Settings
) -> QuotaShown:
    """That of one user. Raises NotAllowed."""
    if user != caller.name and not caller.role.covers(Role.OPERATOR):
        raise NotAllowed(f"{caller.name} may see its own quota only.")
    return shown(await show(db, caller.acting_for(tenant), user, settings))


async def set_by(
    db: Database, caller: Caller, user: str, new: NewLimits, tenant: str | None, settings: Settings
) -> QuotaShown:
    """Change the limits of a user; what is left out is the default again. Raises NotAllowed."""
    whose = caller.acting_for(tenant)
    async with db.writing() as session:
        await set_limits(session, user, new.limits, tenant=whose)
        own = new.limits.model_dump(exclude_none=True)
        told = ", ".join(f"{name}={value}" for name, value in own.items()) or "the defaults"
        await done(session, caller, Deed.SET_QUOTA, f"quota of {user}: {told}", tenant=whose)
    return shown(await show(db, whose, user, settings))


def _listed(names: tuple[str, ...]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
