"""What one soak has seen: pure data, times in seconds of one monotonic clock.

**A submit** is one `apply_async` of our library with its default settings, or one file of a batch taken in.
It is accepted when the call returns, and has failed when it raises, for whatever reason, also where Redis was
being killed at that moment. Nothing is asked for twice.

**A read** is one `stream()` from token 0 to its end, one `get()`, or the results of one batch. It is accepted
when it returned the whole right answer. It has failed when it raised, also because Redis broke its
connection; when it gave another text; or when nothing came for two minutes. `StreamRestarted` is no failure:
it says that another run has begun from the start, the reader does the same, and that is one read. A read that
has failed stays failed, whatever its client finds later.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from faults.history.record import History
from faults.soak.flat import Sample

__all__ = ["BatchEnd", "Done", "Soak", "Struck", "Try", "accepted"]


@dataclass(frozen=True, slots=True)
class Try:
    """One submit or read."""

    kind: str  #: what was tried: submit, stream, get, batch submit, batch results
    at: float
    took_s: float
    error: str = ""  #: '' of one that was accepted


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was done."""

    fault: str
    whom: str
    at: float
    took_s: float  #: until it had begun, or was over


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """What became of a batch that was accepted."""

    id: str
    lines: int
    state: str
    trouble: str  #: what is wrong with its results; '' where they are whole and in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """All of it; `check` judges."""

    history: History
    tries: Sequence[Try]
    struck: Sequence[Struck]
    troubles: Sequence[str] = ()  #: a sentence for each fault that could not be done
    due: Mapping[str, float]  #: runs of the schedule: task id -> seconds after the first was due
    batches: Sequence[BatchEnd]
    samples: Sequence[Sample]
    database: str
    interrupted: bool = False  #: by whoever started it
    took_s: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)  #: what is only told


@dataclass(frozen=True, slots=True)
class Done:
    """How many of some tries were accepted."""

    of: int
    failed: int
    why: Mapping[str, int]  #: the errors of the others

    @property
    def share(self) -> float:
        """1.0 of none."""
        return 1.0 - self.failed / self.of if self.of else 1.0


def accepted(tries: Sequence[Try], kinds: frozenset[str]) -> Done:
    """Of these kinds."""
    some = [one for one in tries if one.kind in kinds]
    why = Counter(one.error for one in some if one.error)
    return Done(len(some), why.total(), dict(why.most_common()))
