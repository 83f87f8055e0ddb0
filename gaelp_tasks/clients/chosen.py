"""Local or distributed, by the settings alone."""

from gaelp_tasks.clients.base import BaseOllamaClient
from gaelp_tasks.clients.distributed import DistributedOllamaClient
from gaelp_tasks.clients.local import LocalOllamaClient
from gaelp_tasks.settings import Settings

__all__ = ["client_from_settings"]


def client_from_settings(settings: Settings) -> BaseOllamaClient:
    """LocalOllamaClient for one server in GAELP_OLLAMA_NODES, DistributedOllamaClient for several.

    Raises SettingsError for what cannot be used.
    """
    if len(settings.ollama_nodes) == 1:
        return LocalOllamaClient.from_settings(settings, settings.ollama_nodes[0])
    return DistributedOllamaClient.from_settings(settings)
