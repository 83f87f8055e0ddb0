"""What an agent is measured by: its performance, and what it takes of a machine."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.stored import Id

__all__ = ["AgentMetrics", "NewMetrics", "ResourceUse"]

MOST_NAMES = 64
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*", re.ASCII)


def _named(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("take letters, digits and _.:/- in the name of a metric, a letter first")
    return value


MetricName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_named)]
NotNegative = Annotated[float, Field(ge=0, le=1e18)]


class ResourceUse(Frozen):
    """What was taken of a machine; None where it was not measured."""

    cpu: NotNegative | None = None  #: cores
    memory_bytes: NotNegative | None = None
    gpu: NotNegative | None = None  #: GPUs, as shares of whole ones
    gpu_memory_bytes: NotNegative | None = None
    storage_bytes: NotNegative | None = None


class NewMetrics(Frozen):
    """What is recorded. Numbers beside these fields count as values: `{"reward": 0.4, "step": 120}`."""

    step: Annotated[int, Field(ge=0, le=2**53)] | None = None
    job_id: Id | None = None  #: the training job that it is from
    values: Annotated[dict[MetricName, float], Field(max_length=MOST_NAMES)] = Field(default_factory=dict)
    resources: ResourceUse | None = None

    @model_validator(mode="before")
    @classmethod
    def _beside(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        beside = {
            name: value
            for name, value in given.items()
            if name not in cls.model_fields and isinstance(value, int | float) and not isinstance(value, bool)
        }
        named = given.get("values", {})
        if not beside or not isinstance(named, dict):
            return given
        rest = {name: value for name, value in given.items() if name not in beside}
        return rest | {"values": {**beside, **named}}

    @model_validator(mode="after")
    def _something(self) -> "NewMetrics":
        if not self.values and self.resources is None:
            raise ValueError("give values or resources")
        return self


class AgentMetrics(Frozen):
    """One record, as it is told."""

    id: int
    agent_id: int
    at: datetime
    step: int | None
    job_id: int | None
    values: dict[str, float]
    resources: ResourceUse | None
