"""The judge of a soak: what it has seen, against what is promised. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from faults.history.check import Findings, Promise, broken, check
from faults.soak.flat import LIMITS, Drift, drifts
from faults.soak.plan import Plan
from faults.soak.record import Done, Soak, accepted

__all__ = ["ACCEPTED", "READS", "REDIS", "SUBMITS", "Verdict", "judge"]

ACCEPTED = 0.999
SUBMITS = frozenset({"submit", "batch submit"})
READS = frozenset({"stream", "get", "batch results"})
REDIS = "redis's data"  #: the process of what outlives its process
#: what kinds of trouble bring about in good order is told: runs again, attempts spent, a failure (a read has
#: failed then, and counts there)
PROMISE = Promise(failed=None, needless=None, again=None, spent=None)
KINDS = ("worker", "beat", "metrics", "redis", REDIS)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found, and a sentence for each promise that it breaks."""

    submits: Done
    reads: Done
    findings: Findings
    due: int  #: runs of the schedule
    ran_once: int
    whole: int  #: batches
    drifts: tuple[Drift, ...]
    unjudged: tuple[str, ...]  #: kinds of processes of which none lived long enough
    broken: tuple[str, ...]

    @property
    def growing(self) -> list[Drift]:
        return [drift for drift in self.drifts if drift.growing]


def judge(soak: Soak, plan: Plan) -> Verdict:
    """Judge a soak; where it was too short for memory and descriptors, those are told as not judged."""
    findings = check(soak.history)
    answers: dict[str, set[str]] = {}
    for told in soak.history.acceptances:
        if told.ok:
            answers.setdefault(told.id, set()).add(told.answer)
    found = drifts_of(soak, plan)
    judged = {kind_of(drift.process) for drift in found}
    verdict = Verdict(
        submits=accepted(soak.tries, SUBMITS),
        reads=accepted(soak.tries, READS),
        findings=findings,
        due=len(soak.due),
        ran_once=sum(len(answers.get(one, ())) == 1 for one in soak.due),
        whole=sum(not batch.trouble for batch in soak.batches),
        drifts=found,
        unjudged=tuple(kind for kind in KINDS if kind not in judged),
        broken=(),
    )
    return replace(verdict, broken=tuple(_broken(soak, plan, verdict)))


def drifts_of(soak: Soak, plan: Plan) -> tuple[Drift, ...]:
    """Of all lives; Redis' data is warm once the first results and streams have come to their end."""
    of_data = [sample for sample in soak.samples if sample.process == REDIS]
    of_processes = [sample for sample in soak.samples if sample.process != REDIS]
    return (
        *drifts(of_processes, warm_s=plan.warm_s, least_s=plan.least_s),
        *drifts(of_data, warm_s=plan.warm_s + plan.kept_s, least_s=plan.least_s),
    )


def kind_of(process: str) -> str:
    """worker of worker-3."""
    return process if process == REDIS else process.partition("-")[0]


def _broken(soak: Soak, plan: Plan, verdict: Verdict) -> Iterator[str]:
    for name, done in (("submits", verdict.submits), ("reads", verdict.reads)):
        if done.share < ACCEPTED:
            yield (
                f"{name}: {done.share:.3%} of {done.of} accepted, promised {ACCEPTED:.1%}; "
                f"{done.failed} failed"
            )
    yield from soak.troubles
    yield from broken(verdict.findings, PROMISE)
    if verdict.ran_once < verdict.due:
        yield f"schedule: {verdict.ran_once} of {verdict.due} runs came once"
    for batch in soak.batches:
        if batch.trouble:
            yield f"batch {batch.id}: {batch.trouble}"
    for drift in verdict.growing:
        yield (
            f"{drift.process} ({drift.life}): {drift.figure} grew from {drift.first:,.0f} over "
            f"{drift.middle:,.0f} to {drift.last:,.0f} in {drift.lived_s / 60:.0f} min, tolerated "
            f"{drift.tolerance:,.0f}: {LIMITS[drift.figure].told}"
        )
    long = plan.seconds >= 2 * (plan.warm_s + plan.kept_s + plan.least_s) and not soak.interrupted
    if long and verdict.unjudged:
        yield f"flat: no life was long enough to judge {', '.join(verdict.unjudged)}"
