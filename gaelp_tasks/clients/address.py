"""Addresses of Ollama servers."""

from urllib.parse import urlsplit, urlunsplit

from gaelp_tasks.errors import SettingsError

__all__ = ["without_credentials"]


def without_credentials(url: str) -> str:
    """The address as people may see it. Raises SettingsError for one that cannot be used."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError(
            f"'{url.rpartition('@')[2]}' is no address of an Ollama server: write http://host:11434."
        )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
