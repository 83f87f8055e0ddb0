"""Runners: what turns the declared fields of a job into a program to start. One protocol, one file each."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from gaelp_tasks.models.agent import refused_names
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.models.training import variables

__all__ = ["Launch", "Runner", "Spec", "environment"]


class Spec(NamedTuple):
    """A run as it was declared: nothing in it is merged from free input."""

    job_id: int
    agent_id: int
    run: int  #: number of this start
    command: tuple[str, ...]  #: of the settings' list, not of the job
    image: str | None
    folder: Path  #: the job's own; `config.json`, `hyperparams.json`, `checkpoints/`
    resume_from: str | None  #: name of a checkpoint
    hyperparameters: Mapping[str, object]
    declared: Mapping[str, str]  #: environment and secrets of the agent
    needs: Resources

    @property
    def checkpoints(self) -> Path:
        """Where the job puts them."""
        return self.folder / "checkpoints"


class Launch(NamedTuple):
    """What to start."""

    argv: tuple[str, ...]
    env: Mapping[str, str]  #: all of it: nothing is inherited
    folder: Path
    stdin: str = ""  #: what it may read there, from a file that has no name
    on_kill: tuple[str, ...] = ()  #: a command that ends what outlives the process
    before: tuple[str, ...] = ()  #: one that ends what earlier runs have left; it may fail


class Runner(Protocol):
    """How jobs run here."""

    name: str

    def launch(self, spec: Spec) -> Launch:
        """What to start for it. Raises PolicyViolated where it may not run here."""


def environment(spec: Spec, folder: Path) -> dict[str, str]:
    """What the job finds in its environment; `folder` is the job's own as it sees it."""
    refused = {*refused_names(spec.declared)}
    found = {name: value for name, value in spec.declared.items() if name not in refused}
    found |= variables(spec.hyperparameters)
    found |= {
        "GAELP_JOB_ID": str(spec.job_id),
        "GAELP_AGENT_ID": str(spec.agent_id),
        "GAELP_RUN": str(spec.run),
        "GAELP_CHECKPOINT_DIR": str(folder / "checkpoints"),
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
    }
    if spec.resume_from is not None:
        found["GAELP_RESUME_FROM"] = str(folder / "checkpoints" / spec.resume_from)
    return found
