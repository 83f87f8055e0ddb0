"""All who watch from this process."""

from typing import TYPE_CHECKING

from gaelp_tasks.api.watching.cluster import ClusterWatch
from gaelp_tasks.api.watching.hub import Hub
from gaelp_tasks.api.watching.places import Places
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.settings import Settings

if TYPE_CHECKING:
    from gaelp_tasks.api.state import State  # which holds one of these

__all__ = ["Watchers", "hear", "look"]


class Watchers:
    """What WebSockets of this process share."""

    def __init__(self, settings: Settings, app: GaelpApp) -> None:
        self.hub = Hub(settings)
        self.cluster = ClusterWatch(app)
        self.places = Places(settings.api_watchers, settings.api_watchers_per_user)


async def hear(at: "State") -> None:
    """Work of the process: listen to what is told of agents."""
    await at.watchers.hub.run()


async def look(at: "State") -> None:
    """Work of the process: look at the cluster."""
    await at.watchers.cluster.run()
