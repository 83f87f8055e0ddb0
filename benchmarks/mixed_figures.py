"""What the mixed load benchmark found: waiting times, useful and wasted work, as figures and tables. Pure."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from figures import Figure, markdown, percentile
from paced_server import WIDTH, text_of

__all__ = ["OURS", "Call", "Cell", "Found", "figures_of", "ratios", "report", "settled", "stages_ms"]

OURS = "ours"  #: the side that has targets
#: percentile of the time to the first token -> how many times the idle one it may be
TARGETS = {64: {50: 1.1, 95: 1.5, 99: 2.5}, 512: {50: 1.1, 95: 1.2, 99: 1.5}}


@dataclass(frozen=True, kw_only=True)
class Call:
    """An interactive call, as its caller saw it; times are of the monotonic clock."""

    asked: str
    published_at: float
    first_at: float
    text: str

    @property
    def first_s(self) -> float:
        return self.first_at - self.published_at


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Interactive calls beside background jobs, and what of the model's work was of use."""

    calls: list[Call]
    seconds: float  #: that count
    made: int  #: tokens written by the server meanwhile
    useful_in_all: int  #: from the first job to the last: tokens that are in an answer, each once
    cpu_s: float  #: of the worker, meanwhile
    requests: list[dict[str, Any]] = field(repr=False)  #: the server's record of these jobs and calls

    @property
    def made_in_all(self) -> int:
        """Tokens written from the first job to the last."""
        return sum(row["made"] for row in self.requests)

    @property
    def wasted(self) -> int:
        """Tokens written to be thrown away, or written twice."""
        return self.made_in_all - self.useful_in_all

    @property
    def resumed(self) -> int:
        """Requests that went on after the text of a cut one."""
        return sum(row["first"] > 0 for row in self.requests)

    @property
    def useful_tokens_s(self) -> float:
        """All that was wasted before and after counts as if it had been meanwhile."""
        return (self.made - self.wasted) / self.seconds


def settled(answers: Iterable[tuple[str, str]]) -> int:
    """Tokens in whole answers to these prompts. Raises AssertionError for an answer that is not as asked."""
    tokens = 0
    for asked, text in answers:
        told = json.loads(asked)
        if text != text_of(asked, told["tokens"]):
            raise AssertionError(
                f"The answer to {told['job']} has {len(text) / WIDTH:g} tokens in place of {told['tokens']}, "
                "or other ones."
            )
        tokens += told["tokens"]
    return tokens


@dataclass
class Found:
    """All rounds together."""

    idle: dict[str, list[Call]] = field(default_factory=dict)
    direct: dict[int, list[float]] = field(default_factory=dict)
    cells: dict[int, dict[str, list[Cell]]] = field(default_factory=dict)
    record: list[dict[str, Any]] = field(default_factory=list)  #: the server's, of everything
    halts: list[tuple[float, float]] = field(default_factory=list)  #: of processors, seen by witnesses

    def undisturbed(self, calls: Iterable[Call]) -> list[Call]:
        """Calls that were waiting for their first token while no processor stood still."""
        return [
            call
            for call in calls
            if not any(begun < call.first_at and ended > call.published_at for begun, ended in self.halts)
        ]


def firsts_ms(calls: Iterable[Call]) -> list[float]:
    return [call.first_s * 1000 for call in calls]


def calls_of(cells: Iterable[Cell]) -> list[Call]:
    return [call for cell in cells for call in cell.calls]


def ratios(under_load: Sequence[float], idle: Sequence[float]) -> dict[int, float]:
    """How many times as long as idle it takes, percentile against the same percentile."""
    return {at: percentile(under_load, at) / percentile(idle, at) for at in (50, 95, 99)}


def figures_of(found: Found) -> list[Figure]:
    """The first tokens of all rounds are one sample; work is compared within a round.

    Calls that a halt of the machine has hit count for neither side; the figures with them are told, too.
    """
    figures = []
    for size, sides in found.cells.items():
        for name, cells in sides.items():
            idle, load = found.idle[name], calls_of(cells)
            quiet = ratios(firsts_ms(found.undisturbed(load)), firsts_ms(found.undisturbed(idle)))
            for at, ratio in quiet.items():
                label = f"{size}-token jobs: first token p{at} / idle p{at}, {name}"
                target = TARGETS[size][at] if name == OURS else None
                figures.append(Figure(name=label, unit="", rounds=(ratio,), at_most=target))
            if found.halts:
                for at, ratio in ratios(firsts_ms(load), firsts_ms(idle)).items():
                    label = f"{size}-token jobs: first token p{at} / idle p{at}, {name}, all calls"
                    figures.append(Figure(name=label, unit="", rounds=(ratio,)))
            figures += work_of(size, name, cells, found.direct[size])
    return figures


def work_of(size: int, name: str, cells: Sequence[Cell], direct: Sequence[float]) -> list[Figure]:
    """What of the model's time was of use."""
    useful = tuple(cell.useful_tokens_s / limit for cell, limit in zip(cells, direct, strict=True))
    wasted = tuple(100 * cell.wasted / cell.made_in_all for cell in cells)
    again = tuple(cell.resumed / max(1, len(cell.calls)) for cell in cells)
    cpu = tuple(100 * cell.cpu_s / cell.seconds for cell in cells)
    label, judged = f"{size}-token jobs", name == OURS
    least, most = (0.95, 0.5) if judged else (None, None)
    return [
        Figure(name=f"{label}: useful tokens / direct limit, {name}", unit="", rounds=useful, at_least=least),
        Figure(name=f"{label}: wasted tokens, {name}", unit="%", rounds=wasted, at_most=most),
        Figure(name=f"{label}: resumed runs per call, {name}", unit="", rounds=again),
        Figure(name=f"{label}: CPU of the worker, {name}", unit="% of a core", rounds=cpu),
    ]


def stages_ms(calls: Iterable[Call], requests: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """Where the time to the first token went: the way to the server, its slot, the prompt, the way back."""
    served = {row["job"]: row for row in reversed([*requests])}  # the first of those that were cut
    found: dict[str, list[float]] = {"to the server": [], "for a slot": [], "prompt": [], "to the reader": []}
    for call in calls:
        row = served[json.loads(call.asked)["job"]]
        times = (call.published_at, row["arrived_at"], row["begun_at"], row["first_at"], call.first_at)
        for stage, (begun, ended) in zip(found.values(), itertools.pairwise(times), strict=True):
            stage.append((ended - begun) * 1000)
    return found


def report(found: Found) -> str:
    """First tokens in milliseconds, as multiples of idle, and by stages, in Markdown."""
    samples = {f"idle, {name}": (name, calls, found.record) for name, calls in found.idle.items()}
    for size, sides in found.cells.items():
        for name, cells in sides.items():
            requests = [row for cell in cells for row in cell.requests]
            samples[f"{size}-token jobs, {name}"] = (name, calls_of(cells), requests)
    percents = (50, 95, 99)
    times = [
        (
            "first token, ms",
            "calls",
            "undisturbed",
            *(f"p{at}" for at in percents),
            *(f"p{at} / idle p50" for at in percents),
        )
    ]
    stages = [("first token, ms, p50 - p95", *stages_ms((), ()))]
    for label, (name, calls, requests) in samples.items():
        found_ms = {at: percentile(firsts_ms(calls), at) for at in percents}
        idle_ms = percentile(firsts_ms(found.idle[name]), 50)
        ratios = (f"{found_ms[at] / idle_ms:.2f}" for at in percents)
        counts = (str(len(calls)), str(len(found.undisturbed(calls))))
        times.append((label, *counts, *(f"{found_ms[at]:,.0f}" for at in percents), *ratios))
        spans = stages_ms(calls, requests).values()
        stages.append(
            (label, *(f"{percentile(span, 50):.1f} - {percentile(span, 95):.1f}" for span in spans))
        )
    return f"{markdown(times)}\n\n{markdown(stages)}\n"
