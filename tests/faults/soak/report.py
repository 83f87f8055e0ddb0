"""A soak in words: what was promised and found, the processes, and all of it as JSON. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from faults.soak.check import ACCEPTED, Verdict, kind_of
from faults.soak.flat import Drift
from faults.soak.plan import Plan
from faults.soak.record import Done, Soak

__all__ = ["as_json", "report"]

MIB = 1024**2
BYTES = {"memory", "used"}


def report(soak: Soak, verdict: Verdict) -> str:
    """Both tables, what failed, and a sentence for each broken promise."""
    parts = [table(promised(soak, verdict)), table(processes(verdict.drifts)), "\n".join(told(soak, verdict))]
    parts.append("\n".join(verdict.broken) or "Every promise was kept.")
    return "\n\n".join(part for part in parts if part)


def promised(soak: Soak, verdict: Verdict) -> Iterator[tuple[str, ...]]:
    """What was found beside what was promised."""
    found = verdict.findings
    yield ("what", "found", "promised")
    for name, done in (("submits", verdict.submits), ("reads", verdict.reads)):
        yield (f"accepted {name}", f"{done.share:.3%} of {done.of:,}", f">= {ACCEPTED:.1%}")
    for name in ("lost", "stranded", "accepted_twice", "ghosts", "buried", "quit"):
        yield (name.replace("_", " "), str(len(getattr(found, name))), "0")
    yield ("runs of the schedule that came once", f"{verdict.ran_once} of {verdict.due}", "all")
    yield ("batches whole and in order", f"{verdict.whole} of {len(soak.batches)}", "all")
    growing = len(verdict.growing)
    yield ("figures of processes that grow", f"{growing} of {len(verdict.drifts)}", "0")


def processes(drifts: Sequence[Drift]) -> Iterator[tuple[str, ...]]:
    """The life of each kind that grew most, of each figure."""
    if not drifts:
        return
    yield ("of", "figure", "lives", "min", "first third", "last third", "tolerated")
    for kind, figure in dict.fromkeys((kind_of(drift.process), drift.figure) for drift in drifts):
        some = [one for one in drifts if (kind_of(one.process), one.figure) == (kind, figure)]
        most = max(some, key=lambda one: one.grown / one.tolerance)
        shown = [number(figure, value) for value in (most.first, most.last, most.tolerance)]
        yield (kind, figure, str(len(some)), f"{most.lived_s / 60:.0f}", shown[0], shown[1], f"+{shown[2]}")


def told(soak: Soak, verdict: Verdict) -> Iterator[str]:
    """What is no promise."""
    faults = Counter(one.fault for one in soak.struck)
    yield f"Faults: {', '.join(f'{count} {name}' for name, count in faults.items()) or 'none'}."
    found = verdict.findings
    yield (
        f"{found.tasks:,} tasks, {len(found.started_twice)} started more than once, {len(found.spent)} "
        f"answers of a later attempt, {len(found.failed)} told as failed, {len(soak.history.doubtful)} "
        f"submits in doubt; database {soak.database}; {soak.took_s:.0f} s"
        f"{', interrupted' if soak.interrupted else ''}."
    )
    for name, done in (("submits", verdict.submits), ("reads", verdict.reads)):
        yield from (f"{count} {name} failed: {why}" for why, count in done.why.items())
    if verdict.unjudged:
        yield f"Lived too short to be judged: {', '.join(verdict.unjudged)}."
    yield from (f"{name}: {fact}" for name, fact in soak.facts.items())


def number(figure: str, value: float) -> str:
    """With its unit."""
    return f"{value / MIB:.1f} MiB" if figure in BYTES else f"{value:.0f}"


def table(rows: Iterator[tuple[str, ...]]) -> str:
    """Markdown; the first row is the head. '' of none."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines[:1], "|" + " --- |" * (lines[0].count("|") - 1), *lines[1:]]) if lines else ""


def as_json(soak: Soak, plan: Plan, verdict: Verdict) -> dict[str, Any]:
    """All figures, and each sample."""
    found = asdict(verdict.findings)
    return {
        "plan": asdict(plan),
        "took_s": soak.took_s,
        "interrupted": soak.interrupted,
        "database": soak.database,
        "broken": verdict.broken,
        "submits": done(verdict.submits),
        "reads": done(verdict.reads),
        "findings": {name: value for name, value in found.items() if not name.endswith("_s")},
        "schedule": {"due": verdict.due, "ran_once": verdict.ran_once},
        "batches": [asdict(batch) for batch in soak.batches],
        "struck": [asdict(one) for one in soak.struck],
        "failed": [asdict(one) for one in soak.tries if one.error],
        "drifts": [asdict(drift) for drift in verdict.drifts],
        "unjudged": verdict.unjudged,
        "facts": dict(soak.facts),
        "samples": [(one.process, one.life, one.figure, round(one.at, 1), one.value) for one in soak.samples],
    }


def done(tries: Done) -> dict[str, Any]:
    return {"of": tries.of, "failed": tries.failed, "share": tries.share, "why": dict(tries.why)}
