"""The application: its state from start to end, its gates from outside in, its routes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware

from gaelp_tasks import app as own_app
from gaelp_tasks.api.access import SignIn
from gaelp_tasks.api.background import BACKGROUND, LISTENING
from gaelp_tasks.api.bodies import Bodies
from gaelp_tasks.api.counting import Counting
from gaelp_tasks.api.event_stream import Readers
from gaelp_tasks.api.exporter import Exporter
from gaelp_tasks.api.refusals import HANDLERS
from gaelp_tasks.api.replays import Replays
from gaelp_tasks.api.requests import Requests
from gaelp_tasks.api.routes import ROUTERS
from gaelp_tasks.api.state import State
from gaelp_tasks.api.watching.watchers import Watchers
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect_async
from gaelp_tasks.db.database import Database
from gaelp_tasks.services.accepting import Accepting
from gaelp_tasks.services.identity import Identity
from gaelp_tasks.services.purse import Purse
from gaelp_tasks.services.rates import Failures, Rates
from gaelp_tasks.services.status import Glance
from gaelp_tasks.services.tokens import Tokens
from gaelp_tasks.settings import Settings

__all__ = ["GATES", "application"]

logger = logging.getLogger(__name__)

AGAIN_S = 1.0  #: after a work has failed

#: what each request goes through before its route, the outermost first
GATES = (Counting, Requests, SignIn, Bodies, Replays)


def application(settings: Settings, app: GaelpApp = own_app, *, listens: bool = False) -> FastAPI:
    """The API for these settings; `app` publishes, and with `listens` /metrics has a listener of its own.

    Raises SettingsError where no secret is set.
    """
    Tokens(settings)  # without a secret nothing begins

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            db = Database(settings.sql_url)
            stack.push_async_callback(db.close)
            await db.migrate()
            redis = connect_async(settings)
            stack.push_async_callback(redis.aclose)
            purse = Purse(app, settings)
            watchers = Watchers(settings, app)
            at = api.state.gaelp = State(
                settings=settings,
                db=db,
                app=app,
                redis=redis,
                identity=Identity(settings, db),
                glance=Glance(app, db, redis),
                rates=Rates(redis, app.keys, settings.api_rate_per_s, settings.api_burst),
                failures=Failures(settings.api_failures_per_minute),
                purse=purse,
                accepting=Accepting(app, db, most_waiting=settings.api_max_waiting, purse=purse),
                watchers=watchers,
                exporter=Exporter(settings, db, app, watchers),
                readers=Readers(settings.api_max_streams),
            )
            works = [*BACKGROUND, *(LISTENING if listens else ())]
            await stack.enter_async_context(_running(at, works))
            yield

    made = FastAPI(
        title="GAELP",
        version=version("gaelp-tasks"),
        lifespan=lifespan,
        middleware=[Middleware(gate) for gate in GATES],
        exception_handlers=HANDLERS,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    for router in ROUTERS:
        made.include_router(router)
    return made


@asynccontextmanager
async def _running(at: State, works: list[Callable[[State], Awaitable[None]]]) -> AsyncIterator[None]:
    """The works run meanwhile, and are cancelled afterwards."""
    tasks = [asyncio.ensure_future(_kept_up(work, at)) for work in works]
    try:
        yield
    finally:
        going_on = set(tasks)
        while going_on:  # wait_for of Python 3.11 can swallow it, in redis for one
            for task in going_on:
                task.cancel()
            _, going_on = await asyncio.wait(going_on, timeout=AGAIN_S)
        await asyncio.gather(*tasks, return_exceptions=True)


async def _kept_up(work: Callable[[State], Awaitable[None]], at: State) -> None:
    """A work that fails begins anew."""
    while True:
        try:
            await work(at)
        except Exception:
            logger.exception("%s.%s has failed, and begins anew.", work.__module__, work.__qualname__)
        else:
            return
        await asyncio.sleep(AGAIN_S)
