"""What a user may hold at once: resources, and how many runs. Pure."""

from typing import Annotated, NamedTuple

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.invocation import one_sentence
from gaelp_tasks.models.resources import NAMES, Resources

__all__ = ["FIELDS", "Limits", "NewLimits", "QuotaShown", "QuotaStanding", "Share"]

Whole = Annotated[int, Field(ge=0, le=2**53 - 1)]

#: how a part of a quota is called, and its field
FIELDS = {**NAMES, "runs": "runs"}


class Share(NamedTuple):
    """What is held or asked for; each 0 or more."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    storage_bytes: int = 0
    runs: int = 0

    @classmethod
    def of(cls, resources: Resources, *, runs: int = 1) -> "Share":
        """Of something that needs these, and counts as so many runs."""
        return cls(**{field: getattr(resources, field) for field in NAMES.values()}, runs=runs)

    def plus(self, other: "Share") -> "Share":
        """Both together."""
        return Share(*(mine + more for mine, more in zip(self, other, strict=True)))

    def beyond(self, limit: "Share") -> tuple[str, ...]:
        """The names of what is more than the limit; () where all of it fits."""
        return tuple(name for name, field in FIELDS.items() if getattr(self, field) > getattr(limit, field))


class Limits(Frozen):
    """A user's own limits; None: the cluster's default."""

    cpu_milli: Whole | None = None
    memory_bytes: Whole | None = None
    gpus: Whole | None = None
    storage_bytes: Whole | None = None
    runs: Whole | None = None

    def over(self, default: Share) -> Share:
        """With the default where nothing is said."""
        own = (getattr(self, field) for field in FIELDS.values())
        return Share(*(usual if mine is None else mine for mine, usual in zip(own, default, strict=True)))


class QuotaStanding(NamedTuple):
    """A user's quota as it stands."""

    tenant: str
    user: str
    own: Limits
    limit: Share
    held: Share


def _number(name: str, quantity: str | float) -> int:
    """Of what a quota calls so. Raises ValueError."""
    try:
        return int(getattr(Resources.read({name: quantity}), NAMES[name]))
    except ValidationError as error:
        raise ValueError(one_sentence(error).removeprefix(f"{name}: ").rstrip(".")) from None


class NewLimits(Frozen):
    """Limits as people write quantities; None: the cluster's default."""

    cpu: Annotated[str | float | None, Field(examples=["10"])] = None
    memory: Annotated[str | float | None, Field(examples=["20Gi"])] = None
    gpu: Annotated[str | float | None, Field(examples=["2"])] = None
    storage: Annotated[str | float | None, Field(examples=["100Gi"])] = None
    runs: Whole | None = None

    @field_validator(*NAMES)
    @classmethod
    def _readable(cls, value: str | float | None, given: ValidationInfo) -> str | float | None:
        if value is not None:
            _number(str(given.field_name), value)
        return value

    @property
    def limits(self) -> Limits:
        """The numbers."""
        told = {name: getattr(self, name) for name in NAMES}
        read = {NAMES[name]: _number(name, value) for name, value in told.items() if value is not None}
        return Limits(**read, runs=self.runs)


class QuotaShown(Frozen):
    """A user's quota as the API tells it."""

    user: str
    tenant: str
    own: Limits
    limit: dict[str, int]
    held: dict[str, int]
