"""What becomes of an invocation: the outcomes, and the decision between them. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple

from gaelp_tasks.errors import Verdict
from gaelp_tasks.models.invocation import EmbeddingResult, InvocationResult

__all__ = [
    "Cut",
    "Done",
    "Failed",
    "Outcome",
    "Pace",
    "Retry",
    "RetryPolicy",
    "Snooze",
    "backoff_s",
    "decide",
]


@dataclass(frozen=True, slots=True)
class Done:
    """It ended by itself."""

    result: InvocationResult | EmbeddingResult


@dataclass(frozen=True, slots=True)
class Cut:
    """It was ended from outside and keeps its partial text; no chain or callback goes on."""

    result: InvocationResult | EmbeddingResult


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed in a way that may pass; run again after `after_s`, an attempt is spent."""

    after_s: float
    error: Exception


@dataclass(frozen=True, slots=True)
class Snooze:
    """There was no room for it; run again after `after_s` (0: at once), no attempt is spent."""

    after_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It will not be run again."""

    error: Exception


LARGEST_EXPONENT = 1023  #: of a float
LONGEST_S = 30 * 86_400.0  #: no error may ask for a longer wait
#: errors that have taken minutes when they come: few runs, and long waits between them
COSTLY = frozenset({"LoadTimeout", "FirstTokenTimeout"})
COSTLY_ATTEMPTS = 2
COSTLY_FACTOR = 10.0  #: of the usual waits, up to the usual cap
Outcome = Done | Cut | Retry | Snooze | Failed


PaceName = Literal["attempts", "base_s", "cap_s"]


class Pace(NamedTuple):
    """How often and how fast: `attempts` runs in all, waits grow from `base_s` to `cap_s`, seconds."""

    attempts: int
    base_s: float
    cap_s: float


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The usual pace, and that of single classes of errors.

    `by_error`: name of a class -> its own `attempts`, `base_s`, `cap_s`; what is left out is as usual, and it
    holds for subclasses, too.
    """

    attempts: int
    base_s: float
    cap_s: float
    snooze_s: float
    by_error: Mapping[str, Mapping[PaceName, float]] = field(default_factory=dict)

    def pace(self, error: Exception) -> Pace:
        """The pace after this error: that of the nearest of its classes that has one."""
        for name in (cls.__name__ for cls in type(error).__mro__):
            if name in self.by_error:
                own = self.by_error[name]
                return Pace(
                    int(own.get("attempts", self.attempts)),
                    own.get("base_s", self.base_s),
                    own.get("cap_s", self.cap_s),
                )
            if name in COSTLY:
                return Pace(min(self.attempts, COSTLY_ATTEMPTS), self.base_s * COSTLY_FACTOR, self.cap_s)
        return Pace(self.attempts, self.base_s, self.cap_s)


def backoff_s(attempt: int, pace: Pace | RetryPolicy, rng: Random) -> float:
    """Seconds to wait after run number `attempt` (1 for the first): full jitter.

    uniform(0, min(cap_s, base_s * 2 ** (attempt - 1))); a huge attempt is the cap, not an overflow.
    Source: M. Brooker, "Exponential Backoff And Jitter", 2015.
    """
    return rng.uniform(0.0, min(pace.cap_s, pace.base_s * 2.0 ** min(attempt - 1, LARGEST_EXPONENT)))


def decide(error: Exception, attempt: int, policy: RetryPolicy, rng: Random) -> Retry | Snooze | Failed:
    """The outcome of a run that met `error`; `attempt` counts this run.

    Only an error that says so by its `verdict` is tried again: a bug, or an agent's exception without one, is
    final. A wait that it asks for (`retry_after_s`) is a lower bound.
    """
    verdict = getattr(error, "verdict", Verdict.FINAL)
    asked_s = _asked_s(error)
    if verdict == Verdict.SNOOZE:
        return Snooze(max(asked_s, rng.uniform(0.5, 1.0) * policy.snooze_s), str(error))
    pace = policy.pace(error)
    if verdict == Verdict.RETRY and attempt < pace.attempts:
        return Retry(max(asked_s, backoff_s(attempt, pace, rng)), error)
    return Failed(error)


def _asked_s(error: Exception) -> float:
    """The wait that an error asks for, 0 where it names none that can be used."""
    asked_s = getattr(error, "retry_after_s", None)
    if not isinstance(asked_s, int | float) or not math.isfinite(asked_s):
        return 0.0
    return min(max(float(asked_s), 0.0), LONGEST_S)
