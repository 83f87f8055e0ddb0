"""Clients of Ollama servers. LocalOllamaClient is imported on first use: it alone needs aiohttp."""

from typing import TYPE_CHECKING, Any

from gaelp_tasks.clients.base import BaseOllamaClient, ChatResponse, Embeddings, ModelInfo
from gaelp_tasks.clients.limits import Limits
from gaelp_tasks.clients.scripted import ScriptedClient

if TYPE_CHECKING:
    from gaelp_tasks.clients.local import LocalOllamaClient

__all__ = [
    "BaseOllamaClient",
    "ChatResponse",
    "Embeddings",
    "Limits",
    "LocalOllamaClient",
    "ModelInfo",
    "ScriptedClient",
]


def __getattr__(name: str) -> Any:
    if name != "LocalOllamaClient":
        raise AttributeError(f"module 'gaelp_tasks.clients' has no attribute {name!r}")
    try:
        from gaelp_tasks.clients.local import LocalOllamaClient  # noqa: PLC0415  only who uses it needs aiohttp
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ImportError("LocalOllamaClient needs aiohttp: install gaelp-tasks[client].") from error
    return LocalOllamaClient
