"""`--install` of the programs: a systemd unit for `gaelp worker`, `beat`, `metrics` and `flower`."""

import inspect
import os
import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from gaelp_tasks.cli.output import note, print_json
from gaelp_tasks.cli.units import Place, of_system, of_user, unit_name, unit_text, untouched
from gaelp_tasks.settings import read_settings

__all__ = ["installable"]

PANEL = "As a systemd unit"
SCREEN = Path("-")  #: instead of a folder
#: what units of the machine do not see, by ProtectHome and PrivateTmp
HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108  nothing is put there

OPTIONS: dict[str, tuple[Any, Any]] = {
    "install": (
        Annotated[
            bool,
            typer.Option(
                "--install",
                help="Write a unit that runs it so, with these very options, and say what to do next.",
                rich_help_panel=PANEL,
            ),
        ],
        False,
    ),
    "user": (
        Annotated[
            bool, typer.Option("--user", help="A unit of yours, not the machine's.", rich_help_panel=PANEL)
        ],
        False,
    ),
    "to": (
        Annotated[
            Path | None,
            typer.Option(
                metavar="FOLDER",
                help="Write it here; - prints it. Default: /etc/systemd/system.",
                rich_help_panel=PANEL,
            ),
        ],
        None,
    ),
    "force": (
        Annotated[
            bool, typer.Option("--force", help="Overwrite a unit that was edited.", rich_help_panel=PANEL)
        ],
        False,
    ),
    "as_json": (
        Annotated[
            bool, typer.Option("--json", help="Print JSON: the unit and what is next.", rich_help_panel=PANEL)
        ],
        False,
    ),
}


def installable(program: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give the verb of a program `--install`, and the options that belong to it."""

    def give(verb: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(verb).parameters

        @wraps(verb)
        def either(context: typer.Context, **given: Any) -> None:
            asked = {name: given.pop(name) for name in OPTIONS}
            if asked.pop("install"):
                _install(program, _as_called(context), **asked)
                return
            if any(asked.values()):
                raise typer.BadParameter("--user, --to, --force and --json belong to --install.")
            verb(**({"context": context} if "context" in own else {}), **given)

        context = inspect.Parameter(
            "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in OPTIONS.items()
        ]
        rest = [one for name, one in own.items() if name != "context"]
        either.__signature__ = inspect.Signature([context, *rest, *more])  # type: ignore[attr-defined]
        either.__annotations__ = {one.name: one.annotation for one in (context, *rest, *more)}
        return either

    return give


def _as_called(context: typer.Context) -> list[str]:
    """The words of this call, without those of the installation."""
    words = []
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name not in OPTIONS and source is not None and source.name == "COMMANDLINE":
            value = context.params[option.name or ""]
            words.append(option.opts[0] if value is True else f"{option.opts[0]}={value}")
    return [*words, *context.args]


def _install(
    program: str, words: list[str], *, user: bool, to: Path | None, force: bool, as_json: bool
) -> None:
    if not all(word.isprintable() for word in words):
        raise typer.BadParameter("A unit takes no line breaks.")
    place = of_user(_config()) if user else of_system()
    _warn_of_hidden(place)
    there = _readable(place.settings)
    grace_s = read_settings(place.settings if there else None).drain_grace_s
    text = unit_text(program, [*_gaelp(), program, *words], place, grace_s=grace_s)
    path = None if to == SCREEN else (to or place.folder) / unit_name(program)
    written = path is not None and _write(path, text, force=force)
    steps = _next(program, place, path, there=there)
    if as_json:
        shown = str(path) if path else None
        print_json(
            {"unit": unit_name(program), "path": shown, "written": written, "text": text, "next": steps}
        )
    elif path is None:
        print(text, end="")
    else:
        print(f"{path} is {'written' if written else 'as it should be'}. Next:\n")
        print("".join(f"    {step}\n" for step in steps))


def _gaelp() -> list[str]:
    """The program that runs this: the one beside its Python, where units find it again."""
    program = Path(sys.executable).with_name("gaelp")
    return [str(program)] if program.is_file() else [sys.executable, "-m", "gaelp_tasks.cli"]


def _config() -> Path:
    """Where systemd looks for what this user has configured."""
    named = os.environ.get("XDG_CONFIG_HOME")
    return Path(named) if named else Path.home() / ".config"


def _readable(path: Path) -> bool:
    """Whether the settings can be read now; only root may look at those of a machine."""
    return os.access(path, os.R_OK)


def _warn_of_hidden(place: Place) -> None:
    needed = (Path(sys.executable), Path(sys.base_prefix))
    unseen = [path for path in needed if any(path.is_relative_to(hidden) for hidden in HIDDEN)]
    if unseen and not place.by_user:
        note(
            f"A unit of the machine does not see {unseen[0]}, for it may look into nobody's home: install "
            "gaelp-tasks under /opt (docs/bare-metal.md), or take --user."
        )


def _write(path: Path, text: str, *, force: bool) -> bool:
    """Whether it had to be written. Exits where it may not be."""
    try:
        before = path.read_text() if path.exists() else None
        if before == text:
            return False
        if before is not None and not untouched(before) and not force:
            _refuse(
                f"{path} was edited: `--force` overwrites it. `systemctl edit {path.name}` would keep "
                "changes beside it."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(text)
        beside.chmod(0o644)
        beside.replace(path)
    except OSError as error:
        again = shlex.join(["sudo", *_gaelp(), *sys.argv[1:]])
        _refuse(
            f"{path} cannot be written ({error.strerror or error}): run `{again}`, or take --user for a "
            "unit of yours, --to FOLDER for another place, --to - to see it."
        )
    return True


def _refuse(sentence: str) -> None:
    typer.echo(f"gaelp: {sentence}", err=True)
    raise typer.Exit(1)


def _next(program: str, place: Place, path: Path | None, *, there: bool) -> list[str]:
    """What to type now, in order."""
    sudo, systemctl = ("", "systemctl --user") if place.by_user else ("sudo ", "sudo systemctl")
    name, steps = unit_name(program), []
    if not there:
        made = f"{shlex.join([*_gaelp(), 'config', '--env'])} | {sudo}install -D -m 600 /dev/stdin"
        steps.append(f"{made} {shlex.quote(str(place.settings))}")
    if path is not None and path.parent != place.folder:
        steps.append(
            f"{sudo}install -D -m 644 {shlex.quote(str(path))} {shlex.quote(str(place.folder / name))}"
        )
    return [*steps, f"{systemctl} daemon-reload", f"{systemctl} enable --now {name}"]
