"""`gaelp health`: whether a program of this host makes progress, for whoever keeps it running."""

import re
import socket
from collections.abc import Collection, Iterable
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
PAGE_S = 5.0  #: for a page
DEAF_S = 30.0  #: a claim is unanswered for longer: as the alert GaelpDeafWorker
STUCK_S = 600.0  #: nothing has moved in its runs for longer: as the alert GaelpNoProgress
STANDBY = "gaelp_worker_standing_by"  #: on the page of docker/beside.py while there is no model server for it
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  where a program that listens everywhere is found


class Program(StrEnum):
    """Who can be asked about."""

    WORKER = "worker"
    BEAT = "beat"
    METRICS = "metrics"
    API = "api"


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
    worker   it announces a node that is well; by its own page, if
             GAELP_METRICS_PORT gives it one, its claims are
             answered and what it runs moves on
    beat     it ticks, whether it leads or stands by
    metrics  its page tells of the cluster, and is fresh
    api      it answers, and SQL and Redis answer it

    Example: gaelp health worker
    """  # noqa: D301  \b keeps the lines for click
    host = socket.gethostname()
    if program is Program.WORKER:
        verdict = of_worker(live_nodes(app), host, name, _own_page(app.settings))
    elif program is Program.BEAT:
        verdict = of_beat(_beats(), host)
    elif program is Program.API:
        verdict = of_api(_asked(*app.settings.api_listener, "/health"))
    else:
        verdict = of_page(page(*app.settings.metrics_listener))
    if as_json:
        print_json(verdict._asdict())
    else:
        print(verdict.why)
    raise typer.Exit(0 if verdict.well else 1)


def of_worker(nodes: Iterable[NodeSnapshot], host: str, name: str, own_page: str | None) -> Verdict:
    """A worker is well while it announces a node that is well, hears Redis, and moves what it runs.

    What it announces is gone seconds after it stands still. `own_page` tells the rest: '' does not answer;
    None: it serves none, or another worker of this host answers there.
    """
    if own_page and (standing := re.search(rf"(?m)^{STANDBY} (\S+)$", own_page)):
        return _of_standby(answered=bool(float(standing[1])))
    own = [node for node in nodes if (node.worker == name if name else node.worker.endswith(f"@{host}"))]
    if not own:
        return Verdict(well=False, why=f"No worker {name or f'of {host}'} announces a node.")
    if not any(node.healthy for node in own):
        troubles = "; ".join(f"{node.url}: {node.trouble or 'it is unwell'}".rstrip(".") for node in own)
        return Verdict(well=False, why=f"No node of {own[0].worker} is well: {troubles}.")
    if own_page == "":
        return Verdict(well=False, why=f"{own[0].worker} announces a node, but its page does not answer.")
    if own_page is not None and (why := _stands_still(own_page, {node.worker for node in own})):
        return Verdict(well=False, why=why)
    told = ", ".join(f"{node.worker} announces {node.url}" for node in own)
    return Verdict(well=True, why=f"{told}.")


def _of_standby(*, answered: bool) -> Verdict:
    if answered:
        return Verdict(well=True, why="It stands by: it takes the next model server that has no worker.")
    return Verdict(well=False, why="It stands by, and Redis does not answer it.")


def _stands_still(own_page: str, workers: Collection[str]) -> str:
    """What is wrong by the page of one of these workers; '' where nothing is, or the page is another's."""
    info = re.search(r'(?m)^gaelp_worker_info\{[^}\n]*worker="([^"]*)"', own_page)
    if info is None or info[1] not in workers:
        return ""
    told = dict(re.findall(r"(?m)^(\w+) (\S+)$", own_page))
    wants, deaf_s, runs, stuck_s = (
        float(told.get(f"gaelp_{figure}", 0))
        for figure in ("claims_wanted", "claim_age_seconds", "worker_runs", "progress_age_seconds")
    )
    if wants and deaf_s > DEAF_S:
        return f"{info[1]} asks for work and has heard no answer for {deaf_s:.0f} s."
    if runs and stuck_s > STUCK_S:
        return f"Nothing has moved in the runs of {info[1]} for {stuck_s:.0f} s."
    return ""


def of_beat(ages_s: Iterable[tuple[str, float]], host: str) -> Verdict:
    """A beat is well while it ticks. `ages_s` has the seconds since the last tick of each."""
    own = [age_s for beat, age_s in ages_s if beat.startswith(f"{host}:")]
    if not own:
        return Verdict(well=False, why=f"No beat of {host} has ticked within the last minute.")
    return Verdict(min(own) <= TICKED_S, f"The beat of {host} ticked {max(0.0, min(own)):.1f} s ago.")


def of_page(page: str) -> Verdict:
    """An exporter is well while its page has fresh figures. '': there is no page."""
    if not page:
        return Verdict(well=False, why="The page of `gaelp metrics` does not answer.")
    found = re.search(r"(?m)^gaelp_look_age_seconds (\S+)$", page)
    if found is None:
        return Verdict(well=False, why="`gaelp metrics` knows of no cluster: Redis does not answer it.")
    age_s = float(found[1])
    return Verdict(age_s <= LOOKED_S, f"The figures of `gaelp metrics` are {age_s:.1f} s old.")


def of_api(answer: requests.Response | None) -> Verdict:
    """An API is well while it answers, and what it needs answers it. None: it does not."""
    if answer is None:
        return Verdict(well=False, why="`gaelp api` does not answer.")
    if answer.ok:
        return Verdict(well=True, why="`gaelp api` answers, and SQL and Redis answer it.")
    told = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
    silent = [name for name in ("database", "redis") if told.get(name) not in {None, "ok"}]
    why = f"{' and '.join(silent)}: no answer" if silent else f"with status {answer.status_code}"
    return Verdict(well=False, why=f"`gaelp api` answers, but {why}.")


def _beats() -> list[tuple[str, float]]:
    with worded(app.settings):
        clock: Any = app.redis.time()
        found: Any = app.redis.zrange(app.keys.beat_seen, 0, -1, withscores=True)
    now_ms = clock[0] * 1000 + clock[1] // 1000
    return [(str(beat), (now_ms - float(at_ms)) / 1000) for beat, at_ms in found]


def _own_page(settings: Settings) -> str | None:
    return page(settings.metrics_listener[0], settings.metrics_port) if settings.metrics_port else None


def page(host: str, port: int) -> str:
    """The metrics page at an address of this host; '' where it does not answer."""
    answer = _asked(host, port, "/metrics")
    return answer.text if answer is not None and answer.ok else ""


def _asked(host: str, port: int, path: str) -> requests.Response | None:
    """What a program of this host answers; None where it does not."""
    host = ANYWHERE.get(host, host)
    with requests.Session() as session:
        session.trust_env = False  # it is on this very host
        try:
            return session.get(f"http://{f'[{host}]' if ':' in host else host}:{port}{path}", timeout=PAGE_S)
        except requests.RequestException:
            return None
