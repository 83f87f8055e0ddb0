"""The judge: what a history says about lost, repeated and late work. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

from faults.history.record import Acceptance, History, Outage, Start


class _Dated(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def at(self) -> float: ...


D = TypeVar("D", bound=_Dated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Ids by what befell them, each sorted; empty is good, except for `started_twice`, which is only told."""

    tasks: int  #: acknowledged
    lost: tuple[str, ...]  #: no answer, and in Redis no more
    stranded: tuple[str, ...]  #: no answer, and still in Redis when nothing moved any more
    failed: tuple[str, ...]  #: a failure was told
    accepted_twice: tuple[str, ...]  #: two different answers were told
    started_twice: tuple[str, ...]  #: at least once is the promise, so this is no fault by itself
    needless: tuple[str, ...]  #: started again though nothing had happened to either worker
    again: tuple[str, ...]  #: started again after an answer had been told
    thawed: tuple[str, ...]  #: the same on a worker that was frozen just before: what it writes is refused
    spent: tuple[str, ...]  #: the answer came from a later attempt, and nothing had failed
    ghosts: tuple[str, ...]  #: ran, and nobody had published them
    buried: tuple[str, ...]  #: dead letters
    quit: tuple[str, ...]  #: workers that ended by themselves
    overtaken: tuple[str, ...]  #: once for each run that began elsewhere while its worker was frozen
    refused: int | None  #: overtaken runs that the workers counted; None: nothing counts them
    restarts_s: tuple[float, ...]  #: from a worker's outage to the next start of what it ran, sorted
    stops_s: tuple[float, ...]  #: from SIGTERM to the exit, sorted; infinite where SIGKILL had to help

    def restart_s(self, percent: float) -> float:
        """The time to restart that `percent` of the orphans did not exceed; NaN where there was none."""
        return percentile(self.restarts_s, percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The most that may be found; None: nothing is promised."""

    lost: int | None = 0
    stranded: int | None = 0
    failed: int | None = 0
    accepted_twice: int | None = 0
    needless: int | None = 0
    again: int | None = 0
    spent: int | None = 0
    ghosts: int | None = 0
    buried: int | None = 0
    quit: int | None = 0
    restart_p99_s: float | None = None
    stop_s: float | None = None


THAW_S = 1.0  #: after a thaw a run does at once what it was about to do

COUNTED = (
    "lost",
    "stranded",
    "failed",
    "accepted_twice",
    "needless",
    "again",
    "spent",
    "ghosts",
    "buried",
    "quit",
)


def check(history: History) -> Findings:
    """Judge a history."""
    starts, answers = _by_id(history.starts), _by_id(history.acceptances)
    asked = history.acknowledged.keys() | history.doubtful
    unanswered = history.acknowledged.keys() - answers.keys()
    return Findings(
        tasks=len(history.acknowledged),
        lost=_sorted(unanswered - history.left - {each.rpartition(" ")[2] for each in history.buried}),
        stranded=_sorted(unanswered & history.left),
        failed=_sorted(told.id for told in history.acceptances if not told.ok),
        accepted_twice=_sorted(
            one for one, told in answers.items() if len({each.answer for each in told}) > 1
        ),
        started_twice=_sorted(one for one, runs in starts.items() if len(runs) > 1),
        needless=_sorted(one for one, runs in starts.items() if _needless(runs, history)),
        again=_sorted(one for one, start in _late(starts, answers) if not _at_a_thaw(start, history)),
        thawed=_sorted(one for one, start in _late(starts, answers) if _at_a_thaw(start, history)),
        spent=_sorted(told.id for told in history.acceptances if told.attempt > 1),
        ghosts=_sorted((starts.keys() | answers.keys()) - asked),
        buried=tuple(sorted(history.buried)),
        quit=history.quit,
        overtaken=tuple(sorted(run.id for run in _overtaken(history, starts, answers))),
        refused=history.refused,
        restarts_s=tuple(sorted(_restarts(history, starts, answers))),
        stops_s=tuple(sorted(math.inf if stop.took_s is None else stop.took_s for stop in history.stops)),
    )


def broken(findings: Findings, promise: Promise) -> list[str]:
    """A sentence for each part of the promise that the findings break."""
    sentences = []
    for name in COUNTED:
        found, most = getattr(findings, name), getattr(promise, name)
        if most is not None and len(found) > most:
            shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            sentences.append(f"{name}: {len(found)} of {findings.tasks}, promised {most}: {shown}")
    if findings.refused is not None and findings.refused < len(findings.overtaken):
        sentences.append(f"refused: {findings.refused} of {len(findings.overtaken)} overtaken runs")
    for name, took_s, most_s in (
        ("restart p99", findings.restart_s(99), promise.restart_p99_s),
        ("slowest stop", percentile(findings.stops_s, 100), promise.stop_s),
    ):
        if most_s is not None and took_s > most_s:
            sentences.append(f"{name}: {took_s:.2f} s, promised {most_s:g} s")
    return sentences


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of sorted values that at least `percent` of all do not exceed; NaN for none."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


def _needless(runs: Sequence[Start], history: History) -> bool:
    """Whether some run was followed by another though both workers could work all the time.

    The later one counts, too: one that thaws may begin what it was given long ago and others have done. What
    the earlier one begins at its thaw it has under a lease that ended while it was frozen.
    """
    excuses = (*history.outages, *(Outage(stop.worker, stop.asked_at) for stop in history.stops))
    return any(
        not any(
            one.worker in {earlier.worker, later.worker} and one.touches(earlier.at, later.at)
            for one in excuses
        )
        and not _at_a_thaw(earlier, history)
        for earlier, later in pairwise(runs)
    )


def _restarts(
    history: History, starts: dict[str, list[Start]], answers: dict[str, list[Acceptance]]
) -> Iterable[float]:
    """Seconds from each outage to the next start of each run that it hit.

    A run that a frozen worker ended itself, after its thaw, is none; nor one that never started again: that
    is lost or stranded, or was answered in the worker's last moment.
    """
    for _, outage, later in _orphans(history, starts, answers):
        yield later.at - outage.at


def _late(
    starts: dict[str, list[Start]], answers: dict[str, list[Acceptance]]
) -> Iterable[tuple[str, Start]]:
    """The starts after an answer was told."""
    for one in answers.keys() & starts:
        yield from ((one, start) for start in starts[one] if start.at > answers[one][0].at)


def _at_a_thaw(start: Start, history: History) -> bool:
    """Whether its worker was frozen until a moment ago, perhaps between its last look and this call."""
    return any(
        outage.worker == start.worker and outage.until is not None and 0 <= start.at - outage.until <= THAW_S
        for outage in history.outages
    )


def _overtaken(
    history: History, starts: dict[str, list[Start]], answers: dict[str, list[Acceptance]]
) -> Iterable[Start]:
    """The runs whose workers came back after others had started them again."""
    for run, outage, _ in _orphans(history, starts, answers):
        if outage.until is not None:
            yield run


def _orphans(
    history: History, starts: dict[str, list[Start]], answers: dict[str, list[Acceptance]]
) -> Iterable[tuple[Start, Outage, Start]]:
    """Each run that an outage hit, the outage, and the start that followed while it lasted."""
    hit: dict[str, list[Outage]] = defaultdict(list)
    for outage in history.outages:
        hit[outage.worker].append(outage)
    for task_id, runs in starts.items():
        answered = answers[task_id][0].at if task_id in answers else math.inf
        for earlier, later in pairwise(runs):
            for outage in hit[earlier.worker]:
                until = math.inf if outage.until is None else outage.until
                if earlier.at < outage.at < later.at < until and answered > outage.at:
                    yield earlier, outage, later


def _by_id(events: Iterable[D]) -> dict[str, list[D]]:
    """Events of each id, the earliest first."""
    grouped: dict[str, list[D]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.at):
        grouped[event.id].append(event)
    return dict(grouped)


def _sorted(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(ids)))
