"""What things cost: prices as data, and the arithmetic of bounds. Whole micro-units, rounded up. Pure."""

from typing import Annotated

from pydantic import Field

from gaelp_tasks.models.frozen import Frozen
from gaelp_tasks.models.money import MOST_MICRO

__all__ = ["ModelPrice", "Tariff", "priced", "share_of"]

MILLION = 1_000_000
DEAREST = 10**12  #: a million units for a token, or a second
Price = Annotated[int, Field(ge=0, le=DEAREST, strict=True)]
Percent = Annotated[int, Field(ge=0, le=100, strict=True)]


class ModelPrice(Frozen):
    """Of a model that does not cost what others do."""

    prompt_micro_per_million: Price  #: a million tokens read
    completion_micro_per_million: Price  #: a million tokens told


class Tariff(Frozen):
    """Prices in micro-units; GAELP_TARIFF replaces what it names. 0: free."""

    prompt_micro_per_million: Price = 200_000  #: 0.20 for a million tokens read
    completion_micro_per_million: Price = 800_000  #: 0.80 for a million tokens told
    gpu_second_micro: Price = 500  #: of one GPU of a training job; 1.80 an hour
    cpu_second_micro: Price = 10  #: of one core of a training job; 0.036 an hour
    cold_load_micro: Price = 2_000  #: a model had to be loaded for it; 0.002
    preemptible_percent: Percent = 60  #: off the time of a job that may be interrupted
    cancelled_percent: Percent = 100  #: paid of what a cancelled run had told
    wasted_percent: Percent = 0  #: paid of runs that were lost and repeated: 0, that is ours
    models: dict[str, ModelPrice] = Field(default_factory=dict)

    def of(self, model: str) -> ModelPrice:
        """The prices of a model's tokens."""
        own = self.models.get(model)
        return own or ModelPrice(
            prompt_micro_per_million=self.prompt_micro_per_million,
            completion_micro_per_million=self.completion_micro_per_million,
        )


def priced(quantity: int, micro_per_million: int) -> int:
    """What so many cost, rounded up to a whole micro-unit."""
    return min(-(-max(quantity, 0) * micro_per_million // MILLION), MOST_MICRO)


def share_of(amount_micro: int, percent: int) -> int:
    """So many per cent of an amount, rounded up."""
    return -(-amount_micro * percent // 100)
