"""What happened in one run of the harness: pure data, times in seconds of one monotonic clock.

**Accepted** means: a client could have been told this answer. Celery's Redis backend stores a result record
and publishes the same bytes to whoever waits in `get()`; so an acceptance is each final record that was
published, and each that is found after the drain. Every run gives an answer that no other run gives:

- plain Celery, and no-ops on our worker: each run of the probe returns a token of its own. Celery keeps a
  stored success, but looks first and writes then: two runs that end together are both told.
- our invocations: the model server gives each call a token of its own, so the text tells the runs apart. The
  `end` mark of a stream is told to clients too: the text that it closes is an acceptance like the record's.

**Accepted twice**: one id, two different answers. The same answer heard twice (published, found, in stream
and record) is one acceptance: a write repeated after a lost reply harms nobody. What a second run does
besides, as publishing a chain's next step once more, shows as a start of that step: `again`.

**Overtaken**: a run on a worker that was frozen, and thawed after somebody else had started the run again.
What it still writes must be refused, and our worker counts each run to which that happened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Start:
    """A run began: the task's code, or for an invocation the call of the model."""

    id: str
    run: str
    worker: str
    at: float


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An answer that a client could have been told."""

    id: str
    answer: str
    at: float
    ok: bool = True  #: False: a failure was told
    attempt: int = 1  #: which of the retry policy's runs gave it; 1 where the answer does not tell


@dataclass(frozen=True, slots=True)
class Outage:
    """A worker could not work: killed, frozen, or told to stop."""

    worker: str
    at: float
    until: float | None = None  #: None: it never came back

    def touches(self, since: float, until: float) -> bool:
        """Whether some of it lies between the two moments."""
        return self.at <= until and (self.until is None or self.until >= since)


@dataclass(frozen=True, slots=True)
class Stop:
    """A worker was asked to end by SIGTERM."""

    worker: str
    asked_at: float
    took_s: float | None  #: None: it had to be killed


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All of it; `check` judges."""

    acknowledged: Mapping[str, float]  #: ids that Redis took from the publisher, and when
    doubtful: frozenset[str] = frozenset()  #: published, but the publisher was told of an error
    starts: tuple[Start, ...] = ()
    acceptances: tuple[Acceptance, ...] = ()
    outages: tuple[Outage, ...] = ()
    stops: tuple[Stop, ...] = ()
    left: frozenset[str] = frozenset()  #: ids still in a queue, or held, when nothing moved any more
    buried: tuple[str, ...] = ()  #: the reason for each dead letter, with its id
    suspects: int = 0  #: messages that still waited to run alone
    refused: int | None = None  #: overtaken runs that the workers counted; None: nothing counts them
    quit: tuple[str, ...] = ()  #: a sentence for each worker that ended by itself
    strikes: Mapping[str, int] = field(default_factory=dict)  #: by the fault's name
    idle: int = 0  #: strikes on workers while no task was queued
    took_s: float = 0.0
