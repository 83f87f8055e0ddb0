"""What services of the control plane work with, wherever they run: in the API, in a worker, in a test."""

from typing import Protocol

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import AsyncRedis
from gaelp_tasks.db.database import Database
from gaelp_tasks.settings import Settings

__all__ = ["At"]


class At(Protocol):
    """The database, Redis and settings of a process; the API's State is one."""

    @property
    def settings(self) -> Settings:
        """Of this process."""

    @property
    def db(self) -> Database:
        """Migrated."""

    @property
    def app(self) -> GaelpApp:
        """Publishes, and knows the names of our keys."""

    @property
    def redis(self) -> AsyncRedis:
        """Of this process' event loop."""
