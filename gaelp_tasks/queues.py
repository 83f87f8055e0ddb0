"""Which queue an invocation travels on: pure."""

from gaelp_tasks.models.invocation import Tier

__all__ = ["INBOXES", "SYSTEM", "lower_tier", "route", "tier_of"]

INBOXES = tuple(tier.value for tier in Tier)  #: any service may publish to these, highest tier first
SYSTEM = "system"  #: maintenance


def route(tier: Tier) -> str:
    """The queue for an invocation of this tier."""
    return tier.value


def tier_of(queue: str) -> Tier | None:
    """The tier whose queue this is; None for any other queue."""
    return Tier(queue) if queue in INBOXES else None


def lower_tier(asked: Tier | None, queue: str | None) -> Tier:
    """The tier that counts, of the one asked for and the one of the queue named (contract, section 3).

    Either may be None; both given and different: the lower one, so that nobody jumps a queue by argument.
    """
    tiers = [tier for tier in (asked, tier_of(queue or "")) if tier is not None]
    return max(tiers, key=lambda tier: tier.rank, default=Tier.INTERACTIVE)
