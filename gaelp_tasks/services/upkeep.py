"""What is old goes, metrics, decisions, unpaid bills: now and then, by whichever process serves the API."""

import asyncio
import logging
import random

from gaelp_tasks.errors import DatabaseUnavailable
from gaelp_tasks.services import audit, budgets, metrics
from gaelp_tasks.services.place import At

__all__ = ["prune"]

logger = logging.getLogger(__name__)

EVERY_S = 3600.0


async def prune(at: At) -> None:
    """Throw away what the settings name, about once an hour, until cancelled."""
    while True:
        # replicas that were started together do not all come at once
        await asyncio.sleep(EVERY_S * random.uniform(0.5, 1.0))  # noqa: S311  no secret
        try:
            gone = await metrics.prune(at.db, at.settings.agent_metrics_keep_s)
            forgotten = await audit.prune(at.db, at.settings.audit_keep_s)
            bills = await budgets.prune(at.db, at.settings.ledger_keep_s)
        except DatabaseUnavailable as error:
            logger.warning("What is old stays for now: %s", error)
            continue
        if gone or forgotten or bills:
            told = "Threw away %s metrics, %s decisions and %s bills that were old."
            logger.info(told, gone, forgotten, bills)
