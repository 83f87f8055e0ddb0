"""Where jobs have their folders, and which programs train."""

import shlex
import shutil
import sys
from pathlib import Path

from gaelp_tasks.db import address
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.models.training import TrainingJob
from gaelp_tasks.settings import Settings

__all__ = ["DEFAULT", "commands", "folder_of", "remove", "root"]

DEFAULT = "default"  #: the trainer of agents that name none
EXAMPLE = "train.py"


def root(settings: Settings) -> Path:
    """The folder of all jobs. Raises SettingsError where it must be said and is not."""
    return Path(settings.training_dir) if settings.training_dir else address.state_folder() / "training"


def folder_of(settings: Settings, job: TrainingJob) -> Path:
    """The job's own; its time is in the name because another database counts its jobs anew."""
    return root(settings) / f"job-{job.id}-{int(job.created_at.timestamp() * 1000)}"


def remove(settings: Settings, job: TrainingJob) -> None:
    """Throw it away, with its checkpoints."""
    shutil.rmtree(folder_of(settings, job), ignore_errors=True)


def commands(settings: Settings) -> dict[str, tuple[str, ...]]:
    """The trainers of GAELP_TRAINING_COMMANDS by name; `default` is the example, unless that says otherwise.

    Raises SettingsError.
    """
    found = {name: tuple(shlex.split(line)) for name, line in settings.training_commands.items()}
    if empty := [name for name, words in found.items() if not words]:
        raise SettingsError(f"GAELP_TRAINING_COMMANDS: {empty[0]} is no command.")
    if DEFAULT not in found and (example := _example()) is not None:
        # -I keeps it from reading PYTHONUNBUFFERED, and what it tells has to come while it runs
        found[DEFAULT] = (sys.executable, "-I", "-u", str(example))
    return found


def _example() -> Path | None:
    """examples/train.py: in a wheel beside this file, else in the checkout."""
    here = Path(__file__).resolve().parent
    places = (here / EXAMPLE, here.parent.parent / "examples" / EXAMPLE)
    return next((place for place in places if place.is_file()), None)
