"""What every route works with: settings, the database, Redis, who is who."""

from dataclasses import dataclass
from typing import Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from gaelp_tasks.api.event_stream import Readers
from gaelp_tasks.api.exporter import Exporter
from gaelp_tasks.api.watching.watchers import Watchers
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import AsyncRedis
from gaelp_tasks.db.database import Database
from gaelp_tasks.services.accepting import Accepting
from gaelp_tasks.services.identity import Identity
from gaelp_tasks.services.purse import Purse
from gaelp_tasks.services.rates import Failures, Rates
from gaelp_tasks.services.status import Glance
from gaelp_tasks.settings import Settings

__all__ = ["State", "here", "of"]


@dataclass(frozen=True, slots=True)
class State:
    """Made when the process starts, closed when it ends; belongs to its event loop."""

    settings: Settings
    db: Database
    app: GaelpApp
    redis: AsyncRedis
    identity: Identity
    glance: Glance
    rates: Rates
    failures: Failures
    watchers: Watchers
    purse: Purse
    accepting: Accepting
    readers: Readers  #: of token streams
    exporter: Exporter


def of(application: Any) -> State:
    """The state of a running application."""
    state: State = application.state.gaelp
    return state


async def _here(connection: HTTPConnection) -> State:
    return of(connection.app)


here: Any = Depends(_here)  #: in routes: `at: Annotated[State, here]`
