"""Call agents on your own Ollama nodes as Celery tasks: `invoke_agent.delay("...")`."""

from gaelp_tasks import errors
from gaelp_tasks.app import app
from gaelp_tasks.registry import register_agent
from gaelp_tasks.results import InvocationHandle
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.invoke import invoke_agent

__all__ = ["InvocationHandle", "app", "embed", "errors", "invoke_agent", "register_agent"]
