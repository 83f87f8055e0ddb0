"""Agents and parsers by name: names are known without importing what they stand for."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from gaelp_tasks.errors import InvalidInvocation, SettingsError
from gaelp_tasks.settings import Settings

__all__ = ["agent_class", "agent_names", "register_agent"]

T = TypeVar("T", bound=type)

#: The four agents of the second seed. A producer checks names against this table and imports none of them.
BUILT_IN = {
    "chat": "gaelp_tasks.agents.chat:ChatAgent",
    "coding": "gaelp_tasks.agents.coding:CodingAgent",
    "reasoning": "gaelp_tasks.agents.reasoning:ReasoningAgent",
    "research": "gaelp_tasks.agents.research:ResearchAgent",
}

_registered: dict[str, type] = {}


def register_agent(name: str) -> Callable[[T], T]:
    """Class decorator: make an agent callable by `agent=name` in this process.

    Other processes learn of it through GAELP_AGENTS='{"name": "package.module:Class"}'. Raises ValueError for
    a name that is taken or has other characters than letters, digits, '.', '_' and '-'.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name):
        raise ValueError(f"'{name}' is no name for an agent: use letters, digits, '.', '_' and '-'.")
    if name in BUILT_IN or name in _registered:
        raise ValueError(f"There is an agent called '{name}' already.")

    def register(cls: T) -> T:
        _registered[name] = cls
        return cls

    return register


def agent_names(settings: Settings) -> tuple[str, ...]:
    """Every agent that can be called from here: built in, from GAELP_AGENTS, registered in this process."""
    return tuple(sorted({*BUILT_IN, *settings.agents, *_registered}))


def agent_class(name: str, settings: Settings) -> Any:
    """The class behind a name, imported now.

    Raises InvalidInvocation for an unknown name, SettingsError where GAELP_AGENTS names what does not import.
    """
    if name in _registered:
        return _registered[name]
    path = BUILT_IN.get(name) or settings.agents.get(name)
    if path is None:
        known = ", ".join(agent_names(settings))
        raise InvalidInvocation(f"There is no agent called '{name}' here; there are: {known} (GAELP_AGENTS).")
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise SettingsError(f"GAELP_AGENTS: agent '{name}' is {path}, which fails: {error}.") from error
