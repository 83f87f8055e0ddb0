"""What something needs of a machine: quantities as Kubernetes writes them, and the numbers behind them."""

import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_serializer

from gaelp_tasks.models.frozen import Frozen

__all__ = ["NAMES", "Quantities", "Resources"]

MOST = 2**63 - 1  #: what a column of the database holds
LONGEST = 32  #: characters of a quantity
WRITTEN = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d{1,2})|([KMGTPE]i|[mkMGTPE]))?", re.ASCII)
SUFFIXES = {"m": Decimal("0.001")} | {
    f"{letter}{binary}": Decimal((1024 if binary else 1000) ** power)
    for power, letter in enumerate("KMGTPE", start=1)
    for binary in ("", "i")
}
SUFFIXES["k"] = SUFFIXES.pop("K")  # thousands are a small k, 1,024 are Ki
BINARY = ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki")

#: how a quantity is called, and the field of Resources that holds it
NAMES = {"cpu": "cpu_milli", "memory": "memory_bytes", "gpu": "gpus", "storage": "storage_bytes"}


def _number(text: str) -> Decimal:
    """Read a quantity. Raises ValueError."""
    found = WRITTEN.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        raise ValueError("no quantity: write one as 4, 500m, 8Gi or 1.5G")
    digits, exponent, suffix = found.groups()
    scale = Decimal(10) ** int(exponent) if exponent else SUFFIXES.get(suffix or "", Decimal(1))
    return Decimal(digits) * scale


def _whole(name: str, text: str) -> int:
    """The number of a field of Resources, rounded up. Raises ValueError."""
    number = _number(text) * (1000 if name == "cpu" else 1)
    if name == "gpu" and number != number.to_integral_value():
        raise ValueError("GPUs come whole: 0, 1, 2")
    if number > MOST:
        raise ValueError("more than any machine has")
    return int(number.to_integral_value(ROUND_CEILING))


def _text(value: Any) -> Any:
    """JSON's numbers as text; anything else is left for pydantic to refuse."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{Decimal(str(value)):f}"
    return value


def _checked(name: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        value = _text(value)
        if isinstance(value, str):
            _whole(name, value)
        return value

    return BeforeValidator(check)


class Resources(Frozen):
    """Numbers to reckon with; 0 where nothing is needed."""

    cpu_milli: Annotated[int, Field(ge=0, le=MOST)] = 0  #: thousandths of a core
    memory_bytes: Annotated[int, Field(ge=0, le=MOST)] = 0
    gpus: Annotated[int, Field(ge=0, le=MOST)] = 0
    storage_bytes: Annotated[int, Field(ge=0, le=MOST)] = 0

    @classmethod
    def read(cls, quantities: Mapping[str, str | float]) -> "Resources":
        """Of `{"cpu": "4", "memory": "8Gi", "gpu": "1"}`. Raises pydantic's ValidationError, a ValueError."""
        return Quantities.model_validate(quantities).resources

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(**{name: getattr(self, name) + getattr(other, name) for name in NAMES.values()})

    def times(self, count: int) -> "Resources":
        """So many of it; never more than can be told."""
        return Resources(**{name: min(getattr(self, name) * count, MOST) for name in NAMES.values()})

    def beyond(self, limit: "Resources") -> tuple[str, ...]:
        """The names, as quantities are called, of what is more than the limit; () where all of it fits."""
        return tuple(name for name, field in NAMES.items() if getattr(self, field) > getattr(limit, field))

    def quantities(self) -> dict[str, str]:
        """As text that `read` reads back; what is 0 is left out."""
        told = {
            "cpu": _milli(self.cpu_milli),
            "memory": _binary(self.memory_bytes),
            "gpu": str(self.gpus),
            "storage": _binary(self.storage_bytes),
        }
        return {name: text for name, text in told.items() if text != "0"}


class Quantities(Frozen):
    """Resources as people write them: kept as written, each checked."""

    cpu: Annotated[str, _checked("cpu"), Field(examples=["4", "500m"])] = "0"
    memory: Annotated[str, _checked("memory"), Field(examples=["8Gi"])] = "0"
    gpu: Annotated[str, _checked("gpu"), Field(examples=["1"])] = "0"
    storage: Annotated[str, _checked("storage"), Field(examples=["20Gi"])] = "0"

    @property
    def resources(self) -> Resources:
        """The numbers."""
        return Resources(**{field: _whole(name, getattr(self, name)) for name, field in NAMES.items()})

    @model_serializer
    def wire(self) -> dict[str, str]:
        """As JSON: what was said, as it was said."""
        return {name: getattr(self, name) for name in NAMES if name in self.model_fields_set}


def _milli(cpu_milli: int) -> str:
    cores, rest = divmod(cpu_milli, 1000)
    return f"{cpu_milli}m" if rest else str(cores)


def _binary(number_bytes: int) -> str:
    for suffix in BINARY:
        if number_bytes and not number_bytes % int(SUFFIXES[suffix]):
            return f"{number_bytes // int(SUFFIXES[suffix])}{suffix}"
    return str(number_bytes)
