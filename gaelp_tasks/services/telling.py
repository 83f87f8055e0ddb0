"""Telling those who watch an agent what has happened to it; nothing waits for them, nothing fails by them."""

import logging
from contextlib import suppress

from gaelp_tasks.connections import AsyncRedis, SyncRedis, unavailable
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.event import MOST_BYTES, AgentEvent

__all__ = ["tell", "tell_now"]

logger = logging.getLogger(__name__)


async def tell(redis: AsyncRedis, keys: Keys, event: AgentEvent) -> None:
    """Tell it, after the transaction that made it true; where Redis does not serve us nobody hears of it."""
    if text := _text(event):
        with suppress(*unavailable):
            await redis.publish(keys.told(event.agent_id), text)


def tell_now(redis: SyncRedis, keys: Keys, event: AgentEvent) -> None:
    """The same for a program without an event loop."""
    if text := _text(event):
        with suppress(*unavailable):
            redis.publish(keys.told(event.agent_id), text)


def _text(event: AgentEvent) -> str:
    """As it is told; '' where it is too large."""
    text = event.model_dump_json()
    if len(text.encode()) <= MOST_BYTES:
        return text
    logger.warning(
        "A %s event of agent %s has more than %s bytes: untold.", event.event, event.agent_id, MOST_BYTES
    )
    return ""
