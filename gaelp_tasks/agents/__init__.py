"""Agents: a system prompt and a way to answer, on any client."""

from gaelp_tasks.agents.answers import Answer
from gaelp_tasks.agents.base import BaseAgent
from gaelp_tasks.agents.chat import ChatAgent
from gaelp_tasks.agents.coding import CodingAgent
from gaelp_tasks.agents.modes import Mode
from gaelp_tasks.agents.reasoning import ReasoningAgent
from gaelp_tasks.agents.research import ResearchAgent
from gaelp_tasks.registry import register_agent, register_parser, register_tool

__all__ = [
    "Answer",
    "BaseAgent",
    "ChatAgent",
    "CodingAgent",
    "Mode",
    "ReasoningAgent",
    "ResearchAgent",
    "register_agent",
    "register_parser",
    "register_tool",
]
