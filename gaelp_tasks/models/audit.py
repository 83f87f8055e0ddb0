"""What the audit tells: decisions, violations and spending, each as one flat record. Pure."""

from datetime import datetime
from typing import Literal, NamedTuple

from gaelp_tasks.models.frozen import Frozen

__all__ = ["COLUMNS", "SYSTEM", "AuditEntry", "Kept", "Span"]

SYSTEM = "system"  #: the role of what happens by itself


class Span(NamedTuple):
    """From a moment until before another one; None: without an end there."""

    since: datetime | None = None
    until: datetime | None = None


class Kept(NamedTuple):
    """A decision as it is written down."""

    tenant: str
    at: datetime
    agent: int | None
    actor: str
    role: str
    act: str
    allowed: bool
    rule: str
    why: str
    subject: str


class AuditEntry(Frozen):
    """One record; a violation is a decision that refused."""

    kind: Literal["decision", "violation", "spend"]
    id: int  #: among decisions and violations, or among the lines of the ledger
    at: datetime
    tenant: str
    agent_id: int | None  #: None: the agent never came to be, or there is none
    actor: str  #: who asked, or whose money it was
    role: str = ""
    act: str  #: what was asked for, or what was paid for
    allowed: bool = True
    rule: str = ""  #: that refused
    why: str = ""
    subject: str = ""  #: "deployment 3", "version 2", "invocation:ID", "job:ID"
    quantity: int | None = None  #: of what was paid for
    amount_micro: int | None = None  #: paid, in micro-units; below 0 for a discount


COLUMNS = tuple(AuditEntry.model_fields)
