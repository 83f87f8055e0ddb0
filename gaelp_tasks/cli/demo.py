"""`gaelp demo`: the whole system on this machine, with nothing installed but Python."""

import sys
from pathlib import Path

import typer

__all__ = ["demo_app"]

demo_app = typer.Typer(help="Everything at once, with defaults of our own.", no_args_is_help=True)


@demo_app.command()
def up() -> None:
    """Keep broker, model, worker, beat, Flower and the API running here until Ctrl-C."""
    from gaelp_tasks.demo.commands import run_up  # noqa: PLC0415  needs the extra `demo`

    run_up(Path.cwd(), _say)


@demo_app.command()
def run() -> None:
    """Start everything, show it at work in all three tiers, and stop everything."""
    from gaelp_tasks.demo.commands import run_demo  # noqa: PLC0415  needs the extra `demo`

    try:
        run_demo(Path.cwd(), _say)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@demo_app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def server(context: typer.Context) -> None:
    """The small stand-in for Ollama alone; `gaelp demo server --help` lists its options."""
    from gaelp_tasks.demo.model_server.__main__ import main  # noqa: PLC0415  needs the extra `demo`

    sys.exit(main(context.args))


@demo_app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def scripted(context: typer.Context) -> None:
    """An Ollama whose models only say your words again: for trying a cluster without any model."""
    from gaelp_tasks.demo.model_server.scripted import main  # noqa: PLC0415  a server, which no other verb is

    sys.exit(main(context.args))


def _say(line: str) -> None:
    print(line, flush=True)
