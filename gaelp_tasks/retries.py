"""What becomes of an invocation: the outcomes, and the decision between them. Pure."""

from dataclasses import dataclass
from random import Random

from gaelp_tasks.errors import NodeBusy, Verdict
from gaelp_tasks.models.invocation import EmbeddingResult, InvocationResult

__all__ = ["Cut", "Done", "Failed", "Outcome", "Retry", "RetryPolicy", "Snooze", "backoff_s", "decide"]


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
Outcome = Done | Cut | Retry | Snooze | Failed


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast: `attempts` runs in all, waits grow from `base_s` to `cap_s`, seconds."""

    attempts: int
    base_s: float
    cap_s: float
    snooze_s: float


def backoff_s(attempt: int, policy: RetryPolicy, rng: Random) -> float:
    """Seconds to wait after run number `attempt` (1 for the first): full jitter.

    uniform(0, min(cap_s, base_s * 2 ** (attempt - 1))); a huge attempt is the cap, not an overflow.
    Source: M. Brooker, "Exponential Backoff And Jitter", 2015.
    """
    return rng.uniform(0.0, min(policy.cap_s, policy.base_s * 2.0 ** min(attempt - 1, LARGEST_EXPONENT)))


def decide(error: Exception, attempt: int, policy: RetryPolicy, rng: Random) -> Retry | Snooze | Failed:
    """The outcome of a run that met `error`; `attempt` counts this run.

    Only an error that says so is tried again: what is not ours (a bug, an agent's own exception) is final.
    A wait that the node asked for is a lower bound.
    """
    verdict = getattr(error, "verdict", Verdict.FINAL)
    asked_s = error.retry_after_s or 0.0 if isinstance(error, NodeBusy) else 0.0
    if verdict is Verdict.SNOOZE:
        return Snooze(max(asked_s, rng.uniform(0.5, 1.0) * policy.snooze_s), str(error))
    if verdict is Verdict.RETRY and attempt < policy.attempts:
        return Retry(max(asked_s, backoff_s(attempt, policy, rng)), error)
    return Failed(error)
