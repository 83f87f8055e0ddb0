"""Why a WebSocket is closed: the codes that a client can act upon; docs/watching.md lists them."""

from enum import IntEnum

from gaelp_tasks.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    GaelpError,
    NotAllowed,
    NotFound,
    NotSignedIn,
    QueueFull,
)

__all__ = ["Close", "code_of", "reason_of"]

MOST_BYTES = 123  #: that the frame of a close has room for


class Close(IntEnum):
    """Those of 44xx end like the status of HTTP that says the same."""

    NOISY = 1008  #: who watches is not to talk
    FAULT = 1011  #: our own; the log has it
    LATER = 1013  #: SQL or Redis does not answer
    SIGN_IN = 4401
    FORBIDDEN = 4403
    UNKNOWN = 4404  #: no such agent, or one of another tenant
    SLOW = 4408
    TOO_MANY = 4429


CODES: tuple[tuple[type[GaelpError], Close], ...] = (
    (NotSignedIn, Close.SIGN_IN),
    (NotAllowed, Close.FORBIDDEN),
    (NotFound, Close.UNKNOWN),
    (QueueFull, Close.TOO_MANY),
    (BrokerUnavailable, Close.LATER),
    (DatabaseUnavailable, Close.LATER),
)


def code_of(error: GaelpError) -> Close:
    """The code for an error; one without a row is our own fault."""
    return next((code for kind, code in CODES if isinstance(error, kind)), Close.FAULT)


def reason_of(error: GaelpError) -> str:
    """Its sentence, as long as it may be; '' for our own fault."""
    if code_of(error) is Close.FAULT:
        return ""
    return str(error).encode()[:MOST_BYTES].decode(errors="ignore")
