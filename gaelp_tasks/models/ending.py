"""How an invocation has ended, as the history keeps it."""

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

from gaelp_tasks.models.frozen import Frozen, well_formed
from gaelp_tasks.models.usage import Seconds

__all__ = ["Ending"]

LONGEST = 255  #: characters of a name
LARGEST = 2**31 - 1


def _clean(text: str) -> str:
    """As every database takes it: PostgreSQL has no place for NUL, nor UTF-8 for half a character."""
    return well_formed(text.replace("\0", "\N{REPLACEMENT CHARACTER}"))


Text = Annotated[str, AfterValidator(_clean)]
Name = Annotated[Text, AfterValidator(lambda name: name[:LONGEST])]
Count = Annotated[int, Field(ge=0, le=LARGEST)]


class Ending(Frozen):
    """One end of one invocation; '' and 0 stand for what nobody knows. A later release may tell more."""

    model_config = ConfigDict(extra="ignore")

    id: Name
    task: Name
    state: Name  #: done, cut, failed
    stop_reason: Name = ""
    error: Text = ""
    tier: Name
    priority: Count = 0
    tenant: Name = ""
    agent: Name = ""
    model: Name = ""
    node: Text = ""
    worker: Name = ""
    claims: Count = 0
    attempts: Count = 0
    queued_s: Seconds | None = None
    load_s: Seconds | None = None
    first_token_s: Seconds | None = None
    total_s: Seconds | None = None
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    prompt: Text | None = None  #: None: not kept
    text: Text | None = None

    def columns(self) -> dict[str, Any]:
        """Every field by name."""
        return dict(self)
