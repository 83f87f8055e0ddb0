"""`gaelp jobs`: training jobs, asked of the API."""

import json
import time
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gaelp_tasks.cli.api_client import api, read_json
from gaelp_tasks.cli.output import Json, out, print_json
from gaelp_tasks.models.training import ENDED, JobState

__all__ = ["jobs_app"]

jobs_app = typer.Typer(
    help="Training jobs: submit, watch, stop; asks the API (GAELP_API_URL, GAELP_API_TOKEN).",
    no_args_is_help=True,
    epilog="Example: gaelp jobs submit examples/job-config.json",
)

JobId = Annotated[int, typer.Argument(metavar="ID", min=1, help="A job's number.")]
LOOK_S = 1.0  #: between two looks at a job that is waited for
FAILED, STOPPED = 1, 130
SHOWN = (
    *("id", "name", "agent_id", "agent_version", "priority", "preemptible", "owner", "node", "runner"),
    *("attempts", "starts", "retries", "exit_code", "step", "ran_s", "timeout_s", "created_at", "started_at"),
    *("due_at", "ended_at", "resource_requirements", "hyperparameters", "config"),
)
COLOURS = {"running": "cyan", "completed": "green", "failed": "red", "paused": "yellow", "cancelled": "dim"}


@jobs_app.command("list")
def list_(
    *,
    status: Annotated[JobState | None, typer.Option(help="Those in this state.")] = None,
    agent: Annotated[int | None, typer.Option(min=1, help="Those of this agent.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """Training jobs, the newest first.

    Example: gaelp jobs list --status running
    """
    found = api().get("jobs", status=status and status.value, agent_id=agent, limit=most)
    if as_json:
        print_json(found)
        return
    table = Table(box=None)
    for column in ("id", "name", "agent", "priority", "status", "progress", "runs", "node", "why"):
        justify: Any = "right" if column in {"id", "agent", "priority", "runs"} else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for job in found:
        table.add_row(
            *(str(job["id"]), escape(job["name"]), str(job["agent_id"]), str(job["priority"])),
            _state(job),
            _bar(job["progress"]),
            *(str(job["starts"]), escape(job["node"] or ""), escape(job["reason"])),
        )
    out.print(table)


@jobs_app.command()
def show(job_id: JobId, *, as_json: Json = False) -> None:
    """One job with its checkpoints.

    Example: gaelp jobs show 7
    """
    job = api().get(f"jobs/{job_id}")
    kept = api().get(f"jobs/{job_id}/checkpoints")
    if as_json:
        print_json({**job, "checkpoints": kept})
        return
    table = Table(box=None, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("status", f"{_state(job)} {escape(job['reason'])}")
    table.add_row("progress", _bar(job["progress"]))
    for name in SHOWN:
        value = job[name]
        if value is not None:
            table.add_row(name, escape(json.dumps(value) if isinstance(value, dict) else str(value)))
    for one in kept[:5]:
        table.add_row("checkpoint", escape(f"{one['path']} ({one['size_bytes']:,} bytes)"))
    out.print(table)


@jobs_app.command()
def submit(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The job as JSON; - reads standard input.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended, with its progress.")] = False,
    as_json: Json = False,
) -> None:
    """Put a training job into the line.

    Example: gaelp jobs submit examples/job-config.json --wait
    """
    job = api().post("jobs", read_json(file))
    if wait:
        job = _wait(job, quiet=as_json)
    if as_json:
        print_json(job)
    else:
        out.print(f"job {job['id']}: {_state(job)} {escape(job['reason'])}")
    if wait and job["status"] != JobState.COMPLETED:
        raise typer.Exit(FAILED)


@jobs_app.command()
def logs(
    job_id: JobId,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Lines behind this number.")] = 0,
    as_json: Json = False,
) -> None:
    """What a job has printed, and what happened to it; with --json a line each.

    Example: gaelp jobs logs 7 --follow
    """
    with suppress(KeyboardInterrupt):
        while True:
            state = api().get(f"jobs/{job_id}")["status"] if follow else ""
            while found := api().get(f"jobs/{job_id}/logs", after=after):
                for line in found:
                    after = line["number"]
                    _tell(line, as_json=as_json)
            if not follow or state in ENDED:
                return
            time.sleep(LOOK_S)
    raise typer.Exit(STOPPED)


@jobs_app.command()
def cancel(job_id: JobId, *, as_json: Json = False) -> None:
    """End a job; what runs may save itself first.

    Example: gaelp jobs cancel 7
    """
    _ask(job_id, "cancel", as_json=as_json)


@jobs_app.command()
def pause(job_id: JobId, *, as_json: Json = False) -> None:
    """Have a job wait, with its last checkpoint, until it is resumed.

    Example: gaelp jobs pause 7
    """
    _ask(job_id, "pause", as_json=as_json)


@jobs_app.command()
def resume(job_id: JobId, *, as_json: Json = False) -> None:
    """Put a paused job into the line again.

    Example: gaelp jobs resume 7
    """
    _ask(job_id, "resume", as_json=as_json)


def _ask(job_id: int, verb: str, *, as_json: bool) -> None:
    job = api().post(f"jobs/{job_id}/{verb}")
    if as_json:
        print_json(job)
        return
    stops = job["status"] == JobState.RUNNING
    out.print(f"job {job_id}: {_state(job)}{', and told to stop' if stops else ''}")


def _wait(job: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """The job once it has ended; a bar on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, disable=quiet or not out.is_terminal) as progress:
        bar = progress.add_task(f"job {job['id']}", total=1.0)
        while job["status"] not in ENDED:
            told = f"job {job['id']} {job['status']}"
            progress.update(bar, description=told, completed=job["progress"] or 0.0)
            time.sleep(LOOK_S)
            job = api().get(f"jobs/{job['id']}")
        progress.update(bar, completed=job["progress"] or 0.0)
    return job


def _tell(line: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(line))
        return
    text = line["text"] if line["stream"] != "system" else f"-- {line['text']}"
    out.print(text, style="dim" if line["stream"] == "system" else None, markup=False, highlight=False)


def _state(job: dict[str, Any]) -> str:
    colour = COLOURS.get(job["status"])
    return f"[{colour}]{job['status']}[/]" if colour else str(job["status"])


def _bar(progress: float | None) -> str:
    if progress is None:
        return ""
    full = round(progress * 10)
    return f"{'█' * full}{'░' * (10 - full)} {progress:.0%}"
