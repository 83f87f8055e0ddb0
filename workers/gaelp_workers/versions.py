"""Messages of a later release than this one: put off, so that a worker of that release takes them.

A cluster is upgraded one worker at a time. What a worker might misread it neither runs nor fails: the message
waits parked, as it came, for longer each time, and for ever if nobody comes who knows it.
"""

import logging
from collections.abc import Mapping
from typing import Any

from gaelp_tasks.models.invocation import ENVELOPE_VERSION
from gaelp_workers.scripts import PUT_OFF

__all__ = ["put_off", "too_new"]

logger = logging.getLogger(__name__)

LONGEST_S = 60.0
LARGEST_EXPONENT = 16


def version_of(headers: Mapping[str, Any] | None) -> int:
    """The envelope's version; senders that do not tell speak the first."""
    told = (headers or {}).get("gaelp_version")
    return told if isinstance(told, int) else 1


def too_new(headers: Mapping[str, Any] | None) -> bool:
    """Whether only a later release knows how to read this message."""
    return version_of(headers) > ENVELOPE_VERSION


def wait_s(claim: int, first_s: float) -> float:
    """How long it waits after claim number `claim`: doubled each time, up to a minute."""
    return float(min(LONGEST_S, first_s * 2.0 ** min(max(claim, 1) - 1, LARGEST_EXPONENT)))


def put_off(app: Any, message: Any) -> None:
    """Park a message that is held; when it is due it goes to the end of its queue.

    Raises what redis-py raises.
    """
    version, claim = version_of(message.headers), message.headers.get("gaelp_claim") or 1
    reason = f"its envelope version {version} is newer than {ENVELOPE_VERSION}, all that this worker knows"
    logger.warning("Put off %s: %s.", message.headers["id"], reason)
    keys = app.keys
    where = (keys.unacked, keys.leases, keys.parked, keys.parked_messages)
    after_ms = int(wait_s(claim, app.settings.snooze_s) * 1000)
    app.redis.eval(PUT_OFF, len(where), *where, message.delivery_tag, after_ms, reason)
    message.ack()  # nothing of it is held here any more
