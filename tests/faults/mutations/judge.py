"""What became of every message: pure."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from faults.mutations.mutate import Mutant

__all__ = ["Aftermath", "Verdict", "id_of", "judge"]

FINAL = {"SUCCESS", "FAILURE", "REVOKED"}


@dataclass(frozen=True, kw_only=True)
class Aftermath:
    """What was found when nothing moved any more."""

    mutants: Collection[Mutant]
    good: Collection[str]  #: ids of tasks that nobody touched
    states: Mapping[str, str]  #: task id -> Celery's state, for each that has a result
    ended: Collection[str]  #: ids that the worker's log says it has ended; some tasks store no result
    dead: Collection[bytes]  #: the messages among the dead letters
    parked: Collection[bytes]  #: the messages that wait for their time
    queued: int  #: messages still in queues or held
    running: int  #: tasks that the worker still says it runs
    alive: bool  #: the worker is the process that was started
    restarts: int  #: of its consumer
    leaks: Collection[str]  #: lines of its log that hold a prompt


class Verdict(NamedTuple):
    """How the messages ended, by what was done to them, and a sentence for each broken promise."""

    counts: Mapping[str, Counter[str]]  #: level -> end -> how many
    broken: list[str]


def judge(found: Aftermath) -> Verdict:
    """Each mutant has run (its result is stored), is a dead letter, or waits for its time; good ones ran."""
    dead, parked = Counter(found.dead), Counter(found.parked)
    counts: dict[str, Counter[str]] = {}
    broken = []
    for mutant in found.mutants:
        level = mutant.level.partition("+")[0]
        end = _end(mutant.message, found, dead, parked)
        counts.setdefault(level, Counter())[end] += 1
        if end == "lost":
            broken.append(f"lost: a message mutated at {mutant.level}: {mutant.message[:3000]!r}")
    bad = [task_id for task_id in found.good if found.states.get(task_id) != "SUCCESS"]
    promises = (
        (found.alive, "the worker's process ended"),
        (not found.restarts, f"the worker restarted its consumer {found.restarts} times"),
        (not found.queued, f"{found.queued} messages are still queued or held"),
        (not found.running, f"the worker says it still runs {found.running} tasks"),
        (not bad, f"{len(bad)} good ones did not succeed: {_some(bad)}"),
        (not found.leaks, f"{len(found.leaks)} lines of the log hold a prompt: {_some(found.leaks)}"),
    )
    return Verdict(counts, broken + [sentence for kept, sentence in promises if not kept])


def _end(message: bytes, found: Aftermath, dead: Counter[bytes], parked: Counter[bytes]) -> str:
    for name, those in (("dead letter", dead), ("parked", parked)):
        if those[message]:
            those[message] -= 1
            return name
    task_id = id_of(message)
    if task_id is None:
        return "lost"
    state = found.states.get(task_id, "")
    return state if state in FINAL else "ended" if task_id in found.ended else "lost"


def id_of(message: bytes) -> str | None:
    """The task that a message names; None where it names none."""
    try:
        task_id = json.loads(message)["headers"]["id"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return task_id if isinstance(task_id, str) else None


def _some(things: Iterable[str]) -> str:
    return "; ".join(list(things)[:5])
