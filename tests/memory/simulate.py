"""Traces run under ours, the formula and the packer, and what is promised of all of them together."""

from collections.abc import Callable, Iterable, Iterator

from memory.formula import Formula
from memory.judge import Sum, Tally, Verdict
from memory.node import Node
from memory.ours import Ours
from memory.packer import Packer
from memory.traces import Trace, trace

SHARE = 0.80  #: of the packer's work: kept from falling


def run_ours(what: Trace, tell: Callable[[float, str], None] | None = None) -> Tally:
    """The product's controller on this trace."""
    node = Node(what, tell)
    return node.run(Ours(node))


def run_formula(what: Trace) -> Tally:
    """The design's formula on this trace."""
    node = Node(what)
    return node.run(Formula(node))


def judge(seed: int, say: Callable[[str], None] | None = None) -> Verdict:
    """One trace under all three."""
    what = trace(seed)

    def tell(now: float, text: str) -> None:
        assert say is not None
        say(f"{now:8.2f} s  {text}")

    ours = run_ours(what, tell if say else None)
    return Verdict(seed, ours, run_formula(what), Packer(what).work())


def judge_all(seeds: Iterable[int]) -> Iterator[Verdict]:
    """Many traces."""
    return (judge(seed) for seed in seeds)


def promises(ours: Sum, formula: Sum, packer_s: float) -> list[str]:
    """What is broken of what is promised of many traces."""
    found = []
    if ours.broken:
        found.append(f"{ours.broken} of {ours.traces} traces broke a promise")
    if ours.work_s < formula.work_s:
        found.append(f"the formula did more: {formula.work_s:.0f} s of work, ours {ours.work_s:.0f} s")
    if ours.work_s < SHARE * packer_s:
        found.append(f"only {ours.work_s / packer_s:.1%} of the packer's work")
    return found
