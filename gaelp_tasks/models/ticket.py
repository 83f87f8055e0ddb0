"""A ticket for one WebSocket, and what is kept of it."""

from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.frozen import Frozen

__all__ = ["Admission", "Ticket"]


class Ticket(Frozen):
    """Shown to who asked for it, once."""

    ticket: str
    expires_in_s: float  #: until it must be used


class Admission(Frozen):
    """For whom a ticket was made, and how long what it opens may stay open; kept in Redis."""

    caller: Caller
    until: float  #: Unix seconds
