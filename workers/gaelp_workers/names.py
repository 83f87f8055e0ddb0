"""A look, when the worker starts, at what GAELP_AGENTS, GAELP_PARSERS and GAELP_TOOLS name."""

import logging

from gaelp_tasks.errors import SettingsError
from gaelp_tasks.registry import AGENTS, PARSERS, TOOLS
from gaelp_tasks.settings import Settings

__all__ = ["warn_of_names"]

logger = logging.getLogger(__name__)


def warn_of_names(settings: Settings) -> None:
    """One warning for each name whose import fails; the worker starts all the same, for it can run others."""
    named = ((AGENTS, settings.agents), (PARSERS, settings.parsers), (TOOLS, settings.tools))
    for registry, names in named:
        for name in names:
            try:
                registry.find(name, settings)
            except SettingsError as error:
                logger.warning("%s Runs that need it will fail here.", " ".join(str(error).split()))
