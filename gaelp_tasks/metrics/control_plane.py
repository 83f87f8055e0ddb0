"""What each `gaelp api` tells of the tables that all of them share. Pure."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gaelp_tasks.metrics.series import OTHER, Sample

__all__ = ["BUCKETS_S", "MOST_AGENTS", "Durations", "Plane", "samples"]

MOST_AGENTS = 100  #: told of one by one; the others together
#: seconds of a training job
BUCKETS_S = (1, 10, 60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86_400, 3 * 86_400, 7 * 86_400)


class Durations(NamedTuple):
    """How long jobs took that ended alike."""

    within: tuple[int, ...]  #: how many took no longer than each of BUCKETS_S
    ended: int
    sum_s: float


class Plane(NamedTuple):
    """What SQL tells at one moment."""

    agents: Mapping[str, int]  #: by state
    jobs: Mapping[str, int]  #: by state
    durations: Mapping[str, Durations]  #: by the state in which they ended
    held: Mapping[tuple[int, str], float]  #: by agent and resource, what its running jobs hold
    relay_waiting: int  #: accepted, and not published
    relay_oldest_s: float  #: 0 where none waits


def samples(found: Plane | None) -> Iterator[Sample]:
    """The figures; None where SQL does not answer: nothing is told then, but that."""
    yield Sample("gaelp_sql_up", (), float(found is not None))
    if found is None:
        return
    for status, number in found.agents.items():
        yield Sample("gaelp_agents", (status,), number)
    for status, number in found.jobs.items():
        yield Sample("agent_jobs_total", (status,), number)
    for status, took in found.durations.items():
        name = "agent_job_duration_seconds"
        bounds = (*(str(float(bound_s)) for bound_s in BUCKETS_S), "+Inf")
        for bound, number in zip(bounds, (*took.within, took.ended), strict=True):
            yield Sample(f"{name}_bucket", (status, bound), number)
        yield Sample(f"{name}_sum", (status,), took.sum_s)
        yield Sample(f"{name}_count", (status,), took.ended)
    yield from _held(found.held)
    yield Sample("gaelp_relay_waiting", (), found.relay_waiting)
    yield Sample("gaelp_relay_oldest_seconds", (), found.relay_oldest_s)


def _held(held: Mapping[tuple[int, str], float]) -> Iterator[Sample]:
    """The newest agents one by one: those are watched."""
    named = set(sorted({agent for agent, _ in held}, reverse=True)[:MOST_AGENTS])
    summed: dict[tuple[str, str], float] = {}
    for (agent, resource), number in held.items():
        place = str(agent) if agent in named else OTHER, resource
        summed[place] = summed.get(place, 0.0) + number
    for place, number in summed.items():
        yield Sample("agent_resource_usage", place, number)
