"""What the audit tells: decisions, violations and spending, each as one flat record. Pure."""

from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple

from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.frozen import Frozen

__all__ = ["COLUMNS", "COMMAND", "SYSTEM", "AuditEntry", "By", "Deed", "Kept", "Span"]

LONGEST_SUBJECT = 255  #: characters
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


class Deed(StrEnum):
    """What is written down beside decisions about agents."""

    ADD_USER = "add user"
    CHANGE_USER = "change user"
    REMOVE_USER = "remove user"
    MAKE_KEY = "make key"
    REMOVE_KEY = "remove key"
    SET_QUOTA = "set quota"
    SET_BUDGET = "set budget"  #: of a user or a job


class By(NamedTuple):
    """Who did something."""

    actor: str
    role: str

    @classmethod
    def of(cls, caller: Caller) -> "By":
        """Somebody who came in."""
        return cls(caller.name, caller.role.value)

    def did(self, deed: Deed, subject: str, *, tenant: str, at: datetime) -> Kept:
        """As it is written down; the subject names no secret."""
        return Kept(
            *(tenant, at, None, self.actor, self.role, deed.value),
            allowed=True,
            rule="",
            why="",
            subject=subject[:LONGEST_SUBJECT],
        )


COMMAND = By("command line", SYSTEM)  #: who has the database has no need to come in


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
