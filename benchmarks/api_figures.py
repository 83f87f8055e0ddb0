"""What the API benchmark found, as figures. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from figures import Figure

__all__ = ["AGENT", "BARE", "INVOCATION", "SUBMIT", "Cell", "figures_of"]

BARE, AGENT, INVOCATION, SUBMIT = "bare FastAPI", "read an agent", "read an invocation", "submit"
READS_S, SUBMITS_S, P99_MS = 1000, 300, 100  #: targets


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind of request in one round."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  #: of the server, for one request


def figures_of(rounds: Sequence[Mapping[str, Cell]]) -> list[Figure]:
    """Ours has targets; a ratio is taken within a round."""
    figures = []
    for name in (BARE, AGENT, INVOCATION, SUBMIT):
        target = {BARE: None, SUBMIT: SUBMITS_S}.get(name, READS_S)
        cells = [one[name] for one in rounds]
        figures += [
            Figure(
                name=f"{name}",
                unit="requests/s",
                rounds=tuple(cell.per_s for cell in cells),
                at_least=target,
            ),
            Figure(name=f"{name}, p50", unit="ms", rounds=tuple(cell.p50_ms for cell in cells)),
            Figure(
                name=f"{name}, p99",
                unit="ms",
                rounds=tuple(cell.p99_ms for cell in cells),
                at_most=None if target is None else P99_MS,
            ),
            Figure(name=f"{name}, CPU", unit="us", rounds=tuple(cell.cpu_us for cell in cells)),
        ]
    figures += [
        Figure(
            name=f"{name}, ours / bare",
            unit="",
            rounds=tuple(one[name].per_s / one[BARE].per_s for one in rounds),
        )
        for name in (AGENT, INVOCATION, SUBMIT)
    ]
    return figures
