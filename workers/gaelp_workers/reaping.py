"""Leases whose sweeps are counted: how many messages were taken from workers that had died."""

from collections.abc import Callable, Iterable
from typing import Any

from gaelp_tasks.connections import SyncRedis
from gaelp_tasks.sweeping import Swept
from gaelp_workers.leases import Leases

__all__ = ["CountedLeases"]


class CountedLeases(Leases):
    """Leases that tell `on_reaped` how many messages each sweep took from others; it must not wait."""

    def __init__(self, *args: Any, on_reaped: Callable[[int], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_reaped = on_reaped

    def sweep(self, redis: SyncRedis, dead: Iterable[str] = ()) -> Swept:
        """Give back what nobody holds any more and publish what is due."""
        swept = super().sweep(redis, dead)
        if swept.reaped:
            self._on_reaped(swept.reaped)
        return swept
