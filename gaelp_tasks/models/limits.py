"""How far an agent may go: limits that it declares, of its safety policy, of its type. Pure."""

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.invocation import PositiveSeconds
from gaelp_tasks.models.stored import StoredText, Units, micro

__all__ = ["Limits", "tightest"]

MOST_TOKENS = 10_000_000
MOST_RUNS = 1_000_000

Model = Annotated[StoredText, Field(min_length=1, max_length=200)]


class Limits(Frozen):
    """Each None where there is no such limit."""

    cost_per_run: Units | None = None  #: what one run may cost at most
    run_s: PositiveSeconds | None = None  #: how long one run may take
    output_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None  #: of one run
    runs_per_hour: Annotated[int, Field(ge=0, le=MOST_RUNS)] | None = None
    models: Annotated[tuple[Model, ...], Field(max_length=100)] | None = None  #: that it may call

    @model_serializer(mode="wrap")
    def _said(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in told(self).items() if value is not None}

    @property
    def cost_per_run_micro(self) -> int | None:
        """In micro-units."""
        return None if self.cost_per_run is None else micro(self.cost_per_run)

    @property
    def says_something(self) -> bool:
        """Whether it sets any limit at all."""
        return self != Limits()


def tightest(*several: Limits | None) -> Limits:
    """The one that keeps to all of them."""
    given = [one for one in several if one is not None]
    found = {
        name: min((getattr(one, name) for one in given if getattr(one, name) is not None), default=None)
        for name in ("cost_per_run", "run_s", "output_tokens", "runs_per_hour")
    }
    lists = [one.models for one in given if one.models is not None]
    models = tuple(name for name in lists[0] if all(name in others for others in lists)) if lists else None
    return Limits(**found, models=models)
