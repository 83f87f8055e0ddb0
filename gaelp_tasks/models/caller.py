"""Who asks: a user of the API with a tenant and a role."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from gaelp_tasks.errors import NotAllowed
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.frozen import Frozen, JsonText

__all__ = ["LONGEST_USER", "Caller", "Role", "TenantName", "UserName"]

LONGEST_USER = 200  #: characters of a user's name


def _speakable(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("take printable characters and no spaces around it")
    return value


UserName = Annotated[JsonText, Field(min_length=1, max_length=LONGEST_USER), AfterValidator(_speakable)]
TenantName = Annotated[JsonText, Field(max_length=LONGEST_TENANT), AfterValidator(_speakable)]


class Role(StrEnum):
    """What somebody may do; each may do what those before it may."""

    USER = "user"  #: work of the own tenant
    OPERATOR = "operator"  #: beside that nodes, and what they run
    ADMIN = "admin"  #: everything, for every tenant

    @property
    def rank(self) -> int:
        """0 is the lowest."""
        return list(Role).index(self)

    def covers(self, other: "Role") -> bool:
        """Whether who has this role may do what needs the other."""
        return self.rank >= other.rank

    def at_most(self, other: "Role") -> "Role":
        """The lower of both."""
        return other if self.covers(other) else self


class Caller(Frozen):
    """Somebody who was recognised by a token or key."""

    name: UserName
    tenant: TenantName = ""  #: "" is the tenant of those who name none
    role: Role = Role.USER

    def acting_for(self, tenant: str | None) -> str:
        """The tenant in which it makes or sets something; None: its own. Raises NotAllowed for another's."""
        if tenant is None or tenant == self.tenant:
            return self.tenant
        if self.role is not Role.ADMIN:
            raise NotAllowed(f"{self.name} belongs to another tenant.")
        return tenant

    @property
    def scope(self) -> str | None:
        """Whose rows it sees, as repositories take it: its tenant's; None, those of all, for an admin."""
        return None if self.role is Role.ADMIN else self.tenant

    def must_own(self, owner: str) -> None:
        """Raises NotAllowed for who has neither made it nor is an operator; '': nobody is known to have."""
        if self.name != owner and not self.role.covers(Role.OPERATOR):
            whose = f"its owner {owner}" if owner else "its owner, who is not known,"
            raise NotAllowed(f"Only {whose} or an operator may do this.")

    def tenant_for(self, asked: str | None) -> str:
        """Whose work it does: its own tenant's, or for an admin that of any. Raises NotAllowed."""
        if asked is None or asked == self.tenant:
            return self.tenant
        if self.scope is not None:
            raise NotAllowed(f"tenant: {self.name} works for another one; leave it out.")
        return asked
