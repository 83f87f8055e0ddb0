"""The command `gaelp`: all verbs in one place."""

import typer

from gaelp_tasks.cli import looking, programs, running
from gaelp_tasks.cli.demo import demo_app

__all__ = ["cli"]

cli = typer.Typer(
    name="gaelp",
    help="Call agents on your own Ollama nodes as Celery tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings come from GAELP_... variables: `gaelp config` lists them, `gaelp doctor` checks them.",
)

for verb in (running.run, running.embed, running.attach, running.cancel):
    cli.command(rich_help_panel="Work")(verb)
for verb in (looking.status, looking.show, looking.doctor, looking.config):
    cli.command(rich_help_panel="Looking")(verb)
for verb in (programs.worker, programs.beat, programs.flower):
    cli.command(
        rich_help_panel="Programs",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(verb)
cli.add_typer(demo_app, name="demo", rich_help_panel="Programs")
