"""Call agents on your own Ollama nodes as Celery tasks: `invoke_agent.delay("...")`.

What needs Celery is imported at first use: the clients and agents, and every `gaelp ... --help`, do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gaelp_tasks import errors

if TYPE_CHECKING:
    from gaelp_tasks.celery_app import app
    from gaelp_tasks.registry import register_agent, register_parser, register_tool
    from gaelp_tasks.results import InvocationHandle
    from gaelp_tasks.tasks.embed import embed
    from gaelp_tasks.tasks.invoke import invoke_agent

__all__ = [
    "InvocationHandle",
    "app",
    "embed",
    "errors",
    "invoke_agent",
    "register_agent",
    "register_parser",
    "register_tool",
]

_HOMES = {
    "InvocationHandle": "gaelp_tasks.results",
    "app": "gaelp_tasks.celery_app",
    "embed": "gaelp_tasks.tasks.embed",
    "invoke_agent": "gaelp_tasks.tasks.invoke",
    "register_agent": "gaelp_tasks.registry",
    "register_parser": "gaelp_tasks.registry",
    "register_tool": "gaelp_tasks.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gaelp_tasks' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
