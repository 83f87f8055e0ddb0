"""What a run cost: tokens and seconds."""

from typing import Annotated

from pydantic import Field

from gaelp_tasks.models.frozen import Frozen

__all__ = ["Seconds", "Timings", "TokenCount", "Usage"]

TokenCount = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class Usage(Frozen):
    """Tokens as the node counted them; 0 where it did not say."""

    prompt_tokens: TokenCount = 0
    completion_tokens: TokenCount = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


class Timings(Frozen):
    """Seconds of each phase; None where the phase did not happen or could not be seen."""

    queued_s: Seconds | None = None  #: published until started; None from a sender that does not tell when
    load_s: Seconds | None = None  #: waiting for the model to be in memory
    first_token_s: Seconds | None = None  #: started until the first token
    total_s: Seconds = 0.0  #: started until settled
