"""Clients of Ollama servers. What calls a server is imported on first use: it alone needs aiohttp."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gaelp_tasks.clients.base import BaseOllamaClient, ChatResponse, Embeddings, ModelInfo
from gaelp_tasks.clients.limits import Limits
from gaelp_tasks.clients.scripted import ScriptedClient

if TYPE_CHECKING:
    from gaelp_tasks.clients.chosen import client_from_settings
    from gaelp_tasks.clients.distributed import DistributedOllamaClient
    from gaelp_tasks.clients.local import LocalOllamaClient

__all__ = [
    "BaseOllamaClient",
    "ChatResponse",
    "DistributedOllamaClient",
    "Embeddings",
    "Limits",
    "LocalOllamaClient",
    "ModelInfo",
    "ScriptedClient",
    "client_from_settings",
]

LATER = {
    "DistributedOllamaClient": "distributed",
    "LocalOllamaClient": "local",
    "client_from_settings": "chosen",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module 'gaelp_tasks.clients' has no attribute {name!r}")
    try:
        return getattr(import_module(f"gaelp_tasks.clients.{LATER[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise ImportError(f"{name} needs aiohttp: install gaelp-tasks[client].") from error
