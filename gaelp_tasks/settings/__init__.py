"""Every setting: its GAELP_ variable, unit, default and reason. `gaelp config` prints this very table."""

import re
from functools import cache
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings.exceptions import SettingsError as PydanticSettingsError

from gaelp_tasks.errors import SettingsError
from gaelp_tasks.models.invocation import one_sentence
from gaelp_tasks.settings.cluster import Cluster, MemorySource, SettingRow, masked
from gaelp_tasks.settings.control_plane import ControlPlane

__all__ = ["MemorySource", "SettingRow", "Settings", "load_settings", "masked", "read_settings"]


class Settings(ControlPlane, Cluster):
    """From the environment, prefix GAELP_, or from files. Seconds are floats, sizes take units (2GiB)."""


@cache
def load_settings() -> Settings:
    """The settings of this process, read once. Raises SettingsError naming the variable."""
    return read_settings()


def read_settings(file: Path | None = None) -> Settings:
    """The settings of the environment, and for what that leaves out those of a file as systemd reads it.

    Raises SettingsError naming the variable.
    """
    try:
        return Settings(_env_file=file)
    except ValidationError as error:
        name, _, rest = one_sentence(error).partition(":")
        raise SettingsError(f"GAELP_{name.upper()}:{rest}") from None
    except PydanticSettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = f"GAELP_{field[1].upper()}" if field else "A GAELP_ setting"
        if isinstance(error.__cause__, OSError):
            told = f"{error.__cause__.filename} cannot be read ({error.__cause__.strerror})"
            raise SettingsError(f"{name}: {told}: let this program's user read it.") from None
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise SettingsError(f"{name}: its file is not text.") from None
        raise SettingsError(f"{name}: the value must be a JSON object.") from None
