"""Users of the API and their keys, as people give and read them."""

from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.caller import Role, TenantName, UserName
from gaelp_tasks.models.frozen import Frozen, JsonText
from gaelp_tasks.models.invocation import one_sentence

__all__ = ["LONGEST_S", "Key", "NewKey", "NewUser", "User", "UserChanges", "parsed"]

T = TypeVar("T", bound=Frozen)
LONGEST_S = 10 * 366 * 86_400.0  #: no key is given out for longer, but for ever


class NewUser(Frozen):
    """Somebody to be known from now on."""

    name: UserName
    tenant: TenantName = ""
    role: Role = Role.USER


class UserChanges(Frozen):
    """What is to be otherwise; None leaves it."""

    tenant: TenantName | None = None
    role: Role | None = None
    disabled: bool | None = None  #: nobody comes in by this name
    sign_out: bool = False  #: tokens made before now hold no more; keys do


class User(Frozen):
    """Somebody who is known."""

    id: int
    name: str
    tenant: str
    role: Role
    disabled: bool
    created_at: datetime
    tokens_from: datetime | None  #: tokens made before hold no more; None: no matter when


class NewKey(Frozen):
    """A key to be made for who asks."""

    name: Annotated[JsonText, Field(max_length=100)] = ""  #: what it is for
    role: Role | None = None  #: what it may do at most; None: what who asks may
    ttl_s: Annotated[float, Field(gt=0, le=LONGEST_S)] | None = None  #: None: until it is removed


class Key(Frozen):
    """A key without its secret, which nobody knows but who was shown it."""

    id: int
    user: str
    role: Role  #: at most; less where the user has less
    name: str
    prefix: str  #: how it begins
    created_at: datetime
    expires_at: datetime | None  #: None: never
    key: str | None = None  #: itself, told once: in the answer that made it


def parsed(kind: type[T], **given: Any) -> T:
    """Build one of these from plain values. Raises InvalidInvocation with one sentence."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise InvalidInvocation(one_sentence(error)) from None
