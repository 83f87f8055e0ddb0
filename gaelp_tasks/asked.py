"""What a message asks for, as far as it tells: pure. Anybody may have written anything into it."""

from collections.abc import Mapping
from typing import Any

from gaelp_tasks.models.invocation import DEFAULT_PRIORITY, Tier
from gaelp_tasks.queues import CALLS, lower_tier

__all__ = ["arguments", "asked_for"]

CHAT = "chat"  #: the agent where none is named


def arguments(request: Any) -> dict[str, Any]:
    """Those of Celery's request by name; of those without a name only the first has one."""
    named = request.kwargs if isinstance(request.kwargs, dict) else {}
    return {"prompt": request.args[0], **named} if request.args else dict(named)


def asked_for(task: str, request: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Tier, agent, model and priority, by its arguments and its queue; '' where there is none."""
    tier, agent, model, priority = (given.get(name) for name in ("tier", "agent", "model", "priority"))
    queue = (request.delivery_info or {}).get("routing_key")
    return {
        "tier": lower_tier(Tier(tier) if tier in list(Tier) else None, queue),
        "agent": "" if CALLS.get(task) else agent if isinstance(agent, str) else CHAT,
        "model": model if isinstance(model, str) else "",
        "priority": priority if isinstance(priority, int) and priority in range(1, 11) else DEFAULT_PRIORITY,
    }
