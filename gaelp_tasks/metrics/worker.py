"""How a worker stands, in figures. Pure."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gaelp_tasks.metrics.series import Sample

__all__ = ["Standing", "samples"]


class Standing(NamedTuple):
    """How a worker stands right now."""

    worker: str
    version: str
    runs: int
    open: bool
    wants: bool  #: claims should be under way
    claim_age_s: float
    progress_age_s: float
    reserve_bytes: Mapping[str, int]  #: by node


def samples(now: Standing) -> Iterator[Sample]:
    """The gauges of a worker's page."""
    yield Sample("gaelp_worker_info", (now.worker, now.version), 1)
    yield Sample("gaelp_worker_runs", (), now.runs)
    yield Sample("gaelp_worker_open", (), now.open)
    yield Sample("gaelp_claims_wanted", (), now.wants)
    yield Sample("gaelp_claim_age_seconds", (), now.claim_age_s)
    yield Sample("gaelp_progress_age_seconds", (), now.progress_age_s)
    for node, number in now.reserve_bytes.items():
        yield Sample("gaelp_memory_bytes", (node, "reserve"), number)
