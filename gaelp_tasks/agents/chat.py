"""The plain agent."""

from gaelp_tasks.agents.base import BaseAgent

__all__ = ["ChatAgent"]


class ChatAgent(BaseAgent):
    """Passes the conversation on as it is: the model's own manners, no system prompt."""

    resumable = True
