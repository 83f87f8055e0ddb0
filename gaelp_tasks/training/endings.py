"""What becomes of a job when its run has ended. Pure."""

from dataclasses import dataclass
from random import Random

from gaelp_tasks.cancellation import Reason
from gaelp_tasks.models.training import JobState, Wish
from gaelp_tasks.retries import Pace, backoff_s

__all__ = ["PREEMPTED_AT_MOST", "Ending", "decide"]

PREEMPTED_AT_MOST = 3  #: times that one job makes way
PACE = Pace(attempts=0, base_s=1.0, cap_s=60.0)  #: of waits between tries; how many there are says the job


@dataclass(frozen=True, slots=True)
class Ending:
    """The state that follows a run."""

    state: JobState
    reason: str = ""
    spends: bool = True  #: an attempt
    after_s: float = 0.0  #: of one that is queued again: not to be run before
    gives_back: bool = False  #: of one that is queued again: by its very message
    preempted: bool = False


def decide(  # noqa: PLR0911  one case, one line
    exit_code: int | None, stopped: Reason | None, wish: Wish | None, attempts: int, retries: int, rng: Random
) -> Ending:
    """What follows. `exit_code` None: it never began; `stopped`: we have ended it, and why.

    `attempts` counts this run. Where it ended by itself with 0 it is completed, whatever somebody wished.
    """
    match stopped:
        case None if exit_code == 0:
            return Ending(JobState.COMPLETED)
        case None:
            return _failed(exit_code, attempts, retries, rng)
        case Reason.PREEMPTION:
            return Ending(JobState.QUEUED, "made way for a more urgent job", spends=False, preempted=True)
        case Reason.USER if wish is Wish.PAUSE:
            return Ending(JobState.PAUSED, "paused", spends=False)
        case Reason.USER:
            return Ending(JobState.CANCELLED, "cancelled")
        case Reason.DEADLINE | Reason.TIME_LIMIT:
            return Ending(JobState.FAILED, "it ran longer than its timeout_s")
        case Reason.BUDGET:
            return Ending(JobState.FAILED, "the budget is spent")
        case _:
            why = "its worker stopped" if stopped is Reason.SHUTDOWN else f"stopped ({stopped})"
            return Ending(JobState.QUEUED, why, spends=False, gives_back=True)


def _failed(exit_code: int | None, attempts: int, retries: int, rng: Random) -> Ending:
    if exit_code is None:
        why = "it could not be started"
    else:
        why = f"exit code {exit_code}" if exit_code >= 0 else f"killed by signal {-exit_code}"
    if attempts > retries:
        return Ending(JobState.FAILED, f"{why}, after {attempts} runs")
    return Ending(JobState.QUEUED, f"{why}; it is tried again", after_s=backoff_s(attempts, PACE, rng))
