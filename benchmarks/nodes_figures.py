"""What the nodes benchmark found: tasks and tokens per second with so many nodes, beside linear. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from figures import Figure

__all__ = ["LINEAR", "Cell", "figures_of"]

LINEAR = 0.9  #: of so many times one node


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Some seconds in which so many nodes were busy all the time; times are of the machine's clock."""

    nodes: int
    slots: int  #: of each
    begun: float
    ended: float
    made: int  #: tokens written by the servers meanwhile
    useful_in_all: int  #: from the first job to the last: tokens that are in an answer, each once
    cpu_s: float  #: of all processes, meanwhile
    cores: int
    requests: Sequence[Mapping[str, Any]] = field(repr=False)  #: the servers' records of these jobs

    @property
    def seconds(self) -> float:
        return self.ended - self.begun

    @property
    def tasks_s(self) -> float:
        """Whole answers per second, by the times at which servers had written them."""
        whole = [row for row in self.requests if row["ended_at"] is not None and not row["gone"]]
        return sum(self.begun <= row["ended_at"] < self.ended for row in whole) / self.seconds

    @property
    def wasted(self) -> int:
        """Tokens written to be thrown away, or written twice, from the first job to the last."""
        return sum(row["made"] for row in self.requests) - self.useful_in_all

    @property
    def useful_tokens_s(self) -> float:
        """All that was wasted before and after counts as if it had been meanwhile."""
        return (self.made - self.wasted) / self.seconds

    @property
    def taken(self) -> float:
        """The part of the time of all slots in which they were taken."""
        return sum(map(self._taken_s, self.requests)) / (self.nodes * self.slots * self.seconds)

    @property
    def cpu(self) -> float:
        """The part of the machine's CPU that was used."""
        return self.cpu_s / (self.cores * self.seconds)

    def _taken_s(self, row: Mapping[str, Any]) -> float:
        if row["begun_at"] is None:
            return 0.0
        until = self.ended if row["ended_at"] is None else min(row["ended_at"], self.ended)
        return max(0.0, until - max(row["begun_at"], self.begun))


def figures_of(rounds: Iterable[Mapping[int, Cell]]) -> list[Figure]:
    """A ratio to linear is taken within its round: so many nodes beside as many times one."""
    told = list(rounds)
    figures = []
    for count in sorted(told[0]):
        cells, ones = [cells[count] for cells in told], [cells[1] for cells in told]
        label = "1 node" if count == 1 else f"{count} nodes"
        tasks = tuple(cell.tasks_s for cell in cells)
        tokens = tuple(cell.useful_tokens_s for cell in cells)
        figures += [
            Figure(name=f"{label}: tasks", unit="1/s", rounds=tasks),
            Figure(name=f"{label}: useful tokens", unit="1/s", rounds=tokens),
            Figure(name=f"{label}: slots taken", unit="%", rounds=tuple(100 * cell.taken for cell in cells)),
            Figure(name=f"{label}: CPU", unit="% of all", rounds=tuple(100 * cell.cpu for cell in cells)),
        ]
        if count > 1:
            of = f"{label} / {count} x 1 node"
            pairs = list(zip(cells, ones, strict=True))
            linear = {
                "tasks": tuple(many.tasks_s / (count * one.tasks_s) for many, one in pairs),
                "useful tokens": tuple(
                    many.useful_tokens_s / (count * one.useful_tokens_s) for many, one in pairs
                ),
            }
            figures += [
                Figure(name=f"{of}: {what}", unit="", rounds=ratios, at_least=LINEAR)
                for what, ratios in linear.items()
            ]
    return figures
