"""How long a client waits in each phase of a call."""

import math
from dataclasses import dataclass, fields
from typing import Self

from gaelp_tasks.errors import SettingsError
from gaelp_tasks.settings import Settings

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds each phase may take. A phase has its own limit, so that a slow load is not taken for a stall.

    Raises SettingsError for a limit that is not a positive number (`stall_s` may be 0).
    """

    connect_s: float = 5.0  #: to open a connection: name, TCP and TLS
    answer_s: float = 10.0  #: small questions: version, models, loaded
    load_s: float = 600.0  #: for a model to be in memory
    first_token_s: float = 300.0  #: from the request sent to the first chunk; also for embeddings
    stall_s: float = 120.0  #: between two chunks; 0: off
    total_s: float | None = None  #: from the request sent to the last chunk; None: none

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "total_s" and value is None:
                continue
            if not math.isfinite(value) or value < 0 or (value == 0 and field.name != "stall_s"):
                raise SettingsError(f"{field.name}: {value} is no limit; give seconds above 0.")

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The limits that GAELP_..._TIMEOUT_S name."""
        return cls(
            connect_s=settings.connect_timeout_s,
            load_s=settings.load_timeout_s,
            first_token_s=settings.first_token_timeout_s,
            stall_s=settings.stall_timeout_s,
        )
