"""What was seen in one run; times are time.monotonic()."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Moment", "Record"]


class Moment(NamedTuple):
    """What was free."""

    at: float
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of our worker."""

    seed: int
    kills: int  #: by the kernel, in the cgroup
    expected: Mapping[str, str]  #: the whole text of each invocation
    answers: Mapping[str, Mapping[str, Any]]  #: results, of those that ended well
    failures: Mapping[str, str]  #: what the others ended with
    journal: Sequence[Mapping[str, Any]]  #: support.paging_server's
    moments: Sequence[Moment]
    decisions: Sequence[Mapping[str, Any]]  #: as the worker has logged them
    took_s: float
