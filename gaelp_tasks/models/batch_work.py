"""What SQL and who works on a batch tell each other."""

from typing import NamedTuple

from gaelp_tasks.models.batch import Batch, LineOutcome

__all__ = ["Asked", "Call", "Ended", "Held", "LineOf", "Published", "Reach", "TakenOver"]


class TakenOver(Exception):
    """Nothing to do here: somebody else has this batch, it is over, or there is none."""


class Reach(NamedTuple):
    """How far a conductor is: each is the number of a line, and means all lines up to it."""

    published_to: int = 0  #: may have been published
    disturbed_to: int = 0  #: there may be more than one message of each
    cleared_to: int = 0  #: Redis holds nothing of them


class Held(NamedTuple):
    """A batch that the caller works on, from now on alone."""

    batch: Batch
    reach: Reach
    deaths: int  #: of conductors, one after another, without any progress
    in_order: bool  #: the one before has left in good order: what it noted as published was published
    is_paid: bool = False  #: a budget pays for it


class Call(NamedTuple):
    """Somebody shall work on a batch."""

    tenant: str
    batch_id: str
    ticket: int


class Published(NamedTuple):
    """A line that was published, or may have been."""

    number: int
    task_id: str
    is_open: bool  #: it has no outcome yet


class Asked(NamedTuple):
    """What a line asks for."""

    number: int
    task_id: str
    embeds: bool
    arguments: str  #: JSON


class Ended(NamedTuple):
    """What became of a line."""

    number: int
    outcome: LineOutcome
    code: str = ""
    why: str = ""
    result: str = ""  #: the result mapping as JSON
    wasted_tokens: int = 0  #: told by runs that were lost and started over; counted where it is paid for


class LineOf(NamedTuple):
    """Of which batch an invocation is a line."""

    task_id: str
    batch_id: str
    number: int
    is_open: bool  #: it has no outcome yet
