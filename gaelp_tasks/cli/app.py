"""The command `gaelp`: all verbs in one place."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from gaelp_tasks.cli import cancelling, chat, deployments, looking, planning, programs, running, top
from gaelp_tasks.cli.agents import agents_app
from gaelp_tasks.cli.api import api
from gaelp_tasks.cli.audit import audit_app
from gaelp_tasks.cli.batch import batch_app
from gaelp_tasks.cli.budgets import budgets_app
from gaelp_tasks.cli.demo import demo_app
from gaelp_tasks.cli.dlq import dlq_app
from gaelp_tasks.cli.health import health
from gaelp_tasks.cli.history import history_app
from gaelp_tasks.cli.jobs import jobs_app
from gaelp_tasks.cli.metrics import metrics
from gaelp_tasks.cli.models import models_app
from gaelp_tasks.cli.nodes import nodes_app
from gaelp_tasks.cli.quotas import quotas_app
from gaelp_tasks.cli.schedules import schedule_app
from gaelp_tasks.cli.users import keys_app, token_app, users_app

__all__ = ["cli"]

cli = typer.Typer(
    name="gaelp",
    help="Call agents on your own Ollama nodes as Celery tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings come from GAELP_... variables: `gaelp config` lists them, `gaelp doctor` checks them.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"gaelp-tasks {version('gaelp-tasks')}")
        raise typer.Exit


@cli.callback()
def _main(
    *,
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print name and version."),
    ] = False,
) -> None:
    """Call agents on your own Ollama nodes as Celery tasks."""


PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Work": (running.run, chat.chat, running.embed, running.attach, cancelling.cancel),
    "Looking": (looking.status, top.top, looking.show, looking.doctor, looking.config),
    "Nodes": (planning.plan,),
    "Programs": (programs.worker, programs.beat, programs.flower),
}
#: the programs hand what they do not know to Celery
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

for panel, verbs in PANELS.items():
    for verb in verbs:
        settings = PASS_ON if panel == "Programs" else None
        cli.command(rich_help_panel=panel, context_settings=settings)(verb)
cli.command(rich_help_panel="Programs")(api)
cli.command(rich_help_panel="Programs")(metrics)
cli.command(rich_help_panel="Programs")(health)
cli.add_typer(batch_app, name="batch", rich_help_panel="Work")
cli.add_typer(schedule_app, name="schedule", rich_help_panel="Work")
cli.add_typer(dlq_app, name="dlq", rich_help_panel="Looking")
cli.add_typer(history_app, name="history", rich_help_panel="Looking")
cli.add_typer(nodes_app, name="nodes", rich_help_panel="Nodes")
cli.add_typer(models_app, name="models", rich_help_panel="Nodes")
for verb in deployments.VERBS:
    agents_app.command()(verb)
cli.add_typer(agents_app, name="agents", rich_help_panel="Control plane")
cli.add_typer(audit_app, name="audit", rich_help_panel="Control plane")
cli.add_typer(jobs_app, name="jobs", rich_help_panel="Control plane")
cli.add_typer(quotas_app, name="quotas", rich_help_panel="Control plane")
cli.add_typer(budgets_app, name="budgets", rich_help_panel="Control plane")
cli.add_typer(users_app, name="users", rich_help_panel="Control plane")
cli.add_typer(keys_app, name="keys", rich_help_panel="Control plane")
cli.add_typer(token_app, name="token", rich_help_panel="Control plane")
cli.add_typer(demo_app, name="demo", rich_help_panel="Programs")
