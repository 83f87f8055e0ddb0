"""`gaelp health`: whether a program of this host makes progress, for whoever keeps it running."""

import re
import socket
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import requests
import typer

from gaelp_tasks import app
from gaelp_tasks.cli.output import Json, print_json
from gaelp_tasks.connections import worded
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.settings import Settings

__all__ = ["health"]

TICKED_S = 10.0  #: a beat ticks twice a second, and a look into SQL may take some
LOOKED_S = 10.0  #: an exporter that is asked looks at once
PAGE_S = 5.0  #: for its page
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where a program that listens everywhere is found


class Program(StrEnum):
    """Who can be asked about."""

    WORKER = "worker"
    BEAT = "beat"
    METRICS = "metrics"


class Verdict(NamedTuple):
    """Whether it is well, in one sentence."""

    well: bool
    why: str


def health(
    program: Annotated[Program, typer.Argument(help="Which program of this host.", show_default=False)],
    *,
    name: Annotated[
        str, typer.Option(help="The worker of this name, where several run here: gaelp@host.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Whether a program of this host makes progress, not only lives; exit code 1 when it does not.

    \b
    worker   it announces its node
    beat     it ticks, whether it leads or stands by
    metrics  its page tells of the cluster, and is fresh

    Example: gaelp health worker
    """  # noqa: D301  \b keeps the lines for click
    host = socket.gethostname()
    if program is Program.WORKER:
        verdict = of_worker(live_nodes(app), host, name)
    elif program is Program.BEAT:
        verdict = of_beat(_beats(), host)
    else:
        verdict = of_page(_page(app.settings))
    if as_json:
        print_json(verdict._asdict())
    else:
        print(verdict.why)
    raise typer.Exit(0 if verdict.well else 1)


def of_worker(nodes: Iterable[NodeSnapshot], host: str, name: str) -> Verdict:
    """A worker is well while it announces a node: that is gone seconds after it stands still."""
    own = [node for node in nodes if (node.worker == name if name else node.worker.endswith(f"@{host}"))]
    if not own:
        return Verdict(well=False, why=f"No worker {name or f'of {host}'} announces a node.")
    told = ", ".join(f"{node.worker} announces {node.url}" for node in own)
    return Verdict(well=True, why=f"{told}.")


def of_beat(ages_s: Iterable[tuple[str, float]], host: str) -> Verdict:
    """A beat is well while it ticks. `ages_s` has the seconds since the last tick of each."""
    own = [age_s for beat, age_s in ages_s if beat.startswith(f"{host}:")]
    if not own:
        return Verdict(well=False, why=f"No beat of {host} has ticked within the last minute.")
    return Verdict(min(own) <= TICKED_S, f"The beat of {host} ticked {max(0.0, min(own)):.1f} s ago.")


def of_page(page: str | None) -> Verdict:
    """An exporter is well while its page has fresh figures. None: there is no page."""
    if page is None:
        return Verdict(well=False, why="The page of `gaelp metrics` does not answer.")
    found = re.search(r"(?m)^gaelp_look_age_seconds (\S+)$", page)
    if found is None:
        return Verdict(well=False, why="`gaelp metrics` knows of no cluster: Redis does not answer it.")
    age_s = float(found[1])
    return Verdict(age_s <= LOOKED_S, f"The figures of `gaelp metrics` are {age_s:.1f} s old.")


def _beats() -> list[tuple[str, float]]:
    with worded(app.settings):
        clock: Any = app.redis.time()
        found: Any = app.redis.zrange(app.keys.beat_seen, 0, -1, withscores=True)
    now_ms = clock[0] * 1000 + clock[1] // 1000
    return [(str(beat), (now_ms - float(at_ms)) / 1000) for beat, at_ms in found]


def _page(settings: Settings) -> str | None:
    host, port = settings.metrics_listener
    host = ANYWHERE.get(host, host)
    with requests.Session() as session:
        session.trust_env = False  # it is on this very host
        try:
            answer = session.get(
                f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics", timeout=PAGE_S
            )
        except requests.RequestException:
            return None
    return answer.text if answer.ok else None
