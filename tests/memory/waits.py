"""How long runs and models waited on a node, and how long they may."""

from dataclasses import dataclass, field
from math import inf

from gaelp_tasks.models.invocation import Tier
from gaelp_workers.eviction import RANKS
from gaelp_workers.thresholds import Limits
from memory.judge import promises_broken
from memory.node import LATE_S, Node
from memory.traces import Job, Trace

THIRD = 1 / 3  #: of the loads of who serves strictly in the order of arrival
LIMITS = Limits()


@dataclass
class Waits:
    """One hour under one manager."""

    arrived: int
    done: int
    ended_s: float  #: when the last one was finished
    loads: int
    runs: dict[Tier, list[float]] = field(default_factory=dict)  #: from arrival to start, shortest first
    turns: dict[Tier, float] = field(default_factory=dict)  #: longest wait of a model, by tier of its runs
    broken: list[str] = field(default_factory=list)

    def share(self, tier: Tier, part: float) -> float:
        """The wait that this part of a tier's runs did not exceed; 0 where it has none."""
        waits = self.runs[tier]
        return waits[int(part * (len(waits) - 1))] if waits else 0.0


def waits(node: Node) -> Waits:
    """What it was like on a node that has been run."""
    jobs = node.trace.jobs
    starts = started(node)
    found = Waits(len(jobs), node.tally.done, node.now, node.tally.loads, broken=promises_broken(node.tally))
    for tier in Tier:
        of_it = [job for job in jobs if job.tier is tier]
        found.runs[tier] = sorted(starts.get(job.id, node.now) - job.at_s for job in of_it)
        by_model = [longest(node, name, of_it, starts) for name in node.trace.models]
        found.turns[tier] = max(by_model)
    return found


def started(node: Node) -> dict[str, float]:
    """When each run was, the last time."""
    return {run: at for turn in node.turns for at, run in turn.starts}


def longest(node: Node, name: str, jobs: list[Job], starts: dict[str, float]) -> float:
    """The longest time that runs among these waited for a model while none at all was started on it."""
    mine = [job for job in jobs if job.model == name]
    turns = [turn for turn in node.turns if turn.model.name == name and turn.starts]
    ends = [-inf, *(turn.starts[-1][0] for turn in turns)]
    begins = [*(turn.starts[0][0] for turn in turns), node.now]
    worst_s = 0.0
    for before, after in zip(ends, begins, strict=True):
        left = [job.at_s for job in mine if job.at_s < after <= starts.get(job.id, inf)]
        if left:
            worst_s = max(worst_s, after - max(before, min(left)))
    return worst_s


def round_s(trace: Trace, limits: Limits) -> float:
    """For one model to give way to another: put off, drained, unloaded, and the other one loaded."""
    drained_s = max(job.lasts_s for job in trace.jobs)
    loaded_s = max(model.load_s + model.kv_s for model in trace.models.values())
    return limits.swap_s + limits.poll_s + LATE_S + drained_s + limits.verify_s + loaded_s


def bound_s(trace: Trace, tier: Tier, limits: Limits = LIMITS) -> float:
    """The longest that runs of this tier may wait for a model without one of any tier being started on it.

    A round for every model, its own drain and all the others' turns; only the first of them is not put off.
    """
    higher = any(RANKS[job.tier] < RANKS[tier] for job in trace.jobs)
    rounds_s = len(trace.models) * round_s(trace, limits) - limits.swap_s
    return rounds_s + (limits.most_wait_s if higher else 0.0)


def promises(trace: Trace, ours: Waits, first_come: Waits | None, limits: Limits = LIMITS) -> list[str]:
    """What is broken of what is promised of such an hour, in words; None: loads are not compared."""
    found = list(ours.broken)
    if ours.done < ours.arrived:
        found.append(f"{ours.arrived - ours.done} of {ours.arrived} runs were never finished")
    for tier, waited_s in ours.turns.items():
        most_s = bound_s(trace, tier, limits)
        if waited_s > most_s:
            found.append(f"{waited_s:.0f} s without a turn in the {tier} tier, the bound is {most_s:.0f} s")
    if first_come is not None and ours.loads > THIRD * first_come.loads:
        found.append(f"{ours.loads} loads, and {first_come.loads} in the order of arrival")
    return found
