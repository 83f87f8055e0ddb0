"""`gaelp.run_batch`, and what beat has done for batches that nobody works on."""

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import Task
from celery.exceptions import Reject
from celery.signals import worker_shutting_down
from kombu.exceptions import OperationalError

from gaelp_tasks.cancellation import Cancellation, Reason
from gaelp_tasks.celery_app import app
from gaelp_tasks.connections import unavailable
from gaelp_tasks.errors import BrokerUnavailable, DatabaseUnavailable, SettingsError
from gaelp_tasks.models.batch import BatchState
from gaelp_tasks.models.batch_work import Call, TakenOver
from gaelp_tasks.settings import masked
from gaelp_tasks.tasks.database import database_at
from gaelp_tasks.tasks.rota import Rota

if TYPE_CHECKING:
    from gaelp_tasks.db.database import Database
    from gaelp_tasks.tasks.conducting import Pause

__all__ = ["call_for", "resume_batches", "run_batch"]

logger = logging.getLogger(__name__)

STALE_S = 15.0  #: a batch that nobody has worked on for so long is called for again
TAKEN_S = 60.0  #: a call that no worker has taken within this is void; the next one comes sooner
UNREAD_S = 3600.0  #: one whose file nobody has gone on reading for so long has failed
AWAY_S = 10.0  #: where the database does not serve us, somebody tries again after this
TURN_S = 2.0  #: where too many batches are conducted here, or something else comes first

_rota = Rota()
_stopping = threading.Event()


@worker_shutting_down.connect(weak=False)
def _stop(**_: Any) -> None:
    """A conductor does not use up the time that runs are given to finish."""
    _stopping.set()


@app.task(bind=True, name="gaelp.run_batch", ignore_result=True, max_retries=None)
def run_batch(self: Task, batch_id: str, *, tenant: str = "", ticket: int = 0, died: bool = False) -> None:
    """Work on a batch until it is over; what it needs is in SQL, so anybody can go on with it.

    `ticket` tells the newest call from older ones, which do nothing; `died`: a worker has, at this.
    """
    from gaelp_tasks.runtime import shared_runtime  # noqa: PLC0415  only a running task needs what these
    from gaelp_tasks.tasks.resources import shared_resources  # noqa: PLC0415  bring

    def again(after_s: float, *, died: bool = False) -> None:
        """Have somebody go on later: a message of its own, for each counts the deaths of its workers."""
        try:
            call_for(batch_id, tenant, ticket, died=died, after_s=after_s)
        except BrokerUnavailable as error:
            raise Reject(error, requeue=True) from error

    at, task_id = shared_resources(), self.request.id
    # at the second death it would have to run alone, and wait for its own lines; and beat's call expires,
    # also where it is given back
    if (deaths := _deaths(task_id)) or self.request.expires:
        again(0.0, died=died or deaths > 0)
        return
    call = Call(tenant, batch_id, ticket)
    if not _rota.join(task_id):
        if shared_runtime().run(_waits(call)):  # else there is a newer call
            again(TURN_S, died=died)
        return
    button = at.runs.enter(task_id)
    try:
        pause = shared_runtime().run(_conduct(call, task_id, button, died=died))
    except (DatabaseUnavailable, SettingsError) as error:
        logger.warning("Batch %s waits, for this worker has no database: %s", batch_id, error)
        again(AWAY_S, died=died)
        return
    except Exception:
        logger.exception("Work on batch %s broke off.", batch_id)
        again(AWAY_S, died=True)  # if that happens again and again, the batch fails
        return
    finally:
        at.runs.leave(task_id, button)
        _rota.leave(task_id)
    if pause is not None and pause.gives_back:
        raise Reject(pause.why, requeue=True)
    if pause is not None:
        again(pause.after_s)


@app.task(name="gaelp.maintenance.resume_batches", ignore_result=True)
def resume_batches() -> int:
    """Call for batches under way that nobody works on; returns how many.

    That is needed where the message itself is lost: an emptied Redis, or one that has forgotten its last
    second. Fails those whose file nobody reads any more.
    """
    from gaelp_tasks.db.address import sqlite_file  # noqa: PLC0415  see run_batch
    from gaelp_tasks.runtime import shared_runtime  # noqa: PLC0415

    try:
        url = app.settings.sql_url
        file = sqlite_file(url) if url.startswith("sqlite") else None
        if file is not None and not file.exists():  # nobody has ever had a batch here
            return 0
        calls = shared_runtime().run(_forsaken())
    except (DatabaseUnavailable, SettingsError) as error:
        logger.warning("Batches cannot be looked after, for this worker has no database: %s", error)
        return 0
    for call in calls:
        call_for(call.batch_id, call.tenant, call.ticket, expires_s=TAKEN_S)
    return len(calls)


def call_for(
    batch_id: str,
    tenant: str,
    ticket: int,
    *,
    died: bool = False,
    after_s: float = 0.0,
    expires_s: float | None = None,
) -> None:
    """Have a worker work on a batch; see run_batch. Raises BrokerUnavailable."""
    given = {"tenant": tenant, "ticket": ticket, "died": died}
    try:
        run_batch.apply_async((batch_id,), given, countdown=after_s or None, expires=expires_s)
    except (OperationalError, *unavailable) as error:
        place = masked(app.settings.broker_url)
        raise BrokerUnavailable(f"Redis at {place} does not take the call for a batch ({error}).") from error


async def _conduct(call: Call, name: str, button: Cancellation, *, died: bool) -> "Pause | None":
    """Work on it here; None where nobody need go on. Raises DatabaseUnavailable."""
    from gaelp_tasks.db.batches import Batches  # noqa: PLC0415  see run_batch
    from gaelp_tasks.tasks.batch_lines import LineTasks, verdict  # noqa: PLC0415
    from gaelp_tasks.tasks.conducting import Conductor, Pause  # noqa: PLC0415

    batches = Batches(await _database(), call.tenant)
    revoked = Pause(0.0, "it was revoked")
    is_revoked = False  # and the batch knows

    def leave() -> Pause | None:
        if _stopping.is_set():
            return Pause(0.0, "this worker stops", gives_back=True)
        if button.reason is Reason.USER:
            return None if is_revoked else revoked
        if button.reason is not None:
            return Pause(0.0, f"stopped ({button.reason})", gives_back=True)
        return Pause(TURN_S, "other batches wait") if _rota.makes_way(name) else None

    while True:
        conductor = Conductor(
            call.batch_id,
            name=str(uuid4()),
            batches=batches,
            lines=LineTasks(app, tenant=call.tenant),
            verdict=verdict,
            window=app.settings.batch_window,
            most_deaths=app.settings.poison_deaths,
            leave=leave,
        )
        try:
            pause = await conductor.run(ticket=call.ticket, died=died)
            if pause is not revoked:
                return pause
            # which equals to cancel, for every task of ours
            await batches.move(call.batch_id, BatchState.CANCELLING, now=datetime.now(UTC))
        except TakenOver:
            return None
        is_revoked = True


def _deaths(task_id: str) -> int:
    """How many workers have died with this message. Raises Reject where Redis does not tell."""
    try:
        deaths: Any = app.redis.get(app.keys.deaths(task_id))
    except unavailable as error:
        raise Reject(error, requeue=True) from error
    return int(deaths or 0)


async def _waits(call: Call) -> bool:
    """Note that this call waits for a place; False where it is void."""
    from gaelp_tasks.db.batches import Batches  # noqa: PLC0415  see run_batch

    try:
        batches = Batches(await _database(), call.tenant)
        return await batches.waits(call.batch_id, ticket=call.ticket, now=datetime.now(UTC))
    except (DatabaseUnavailable, SettingsError):
        return True


async def _forsaken() -> list[Call]:
    from gaelp_tasks.db.batch_upkeep import give_up, stale  # noqa: PLC0415  see run_batch

    db, now = await _database(), datetime.now(UTC)
    await give_up(db, before=now - timedelta(seconds=UNREAD_S), now=now)
    return await stale(db, before=now - timedelta(seconds=STALE_S), now=now)


async def _database() -> "Database":
    """The database of this process with the newest tables. Raises DatabaseUnavailable, SettingsError."""
    db = database_at(app.settings.sql_url, "batches")
    await db.migrate()
    return db
