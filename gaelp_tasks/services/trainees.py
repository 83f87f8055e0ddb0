"""Which agent a job trains, and whether it may."""

from typing import Any, NamedTuple

from gaelp_tasks.db.database import Session
from gaelp_tasks.db.trainees import version_of
from gaelp_tasks.errors import InvalidInvocation, NotFound
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.training import NewJob, variables
from gaelp_tasks.settings import Settings

__all__ = ["Trainee", "trainee"]


class Trainee(NamedTuple):
    """What of its agent goes into a job."""

    tenant: str
    version: int
    hyperparameters: dict[str, Any]  #: the agent's, and over them the job's
    image: str | None
    spends: bool


async def trainee(session: Session, caller: Caller, asked: NewJob, settings: Settings) -> Trainee:  # noqa: ARG001
    """Raises NotFound, PolicyViolated, Conflict, InvalidInvocation."""
    found = await version_of(session, asked.agent_id, asked.agent_version, caller.scope)
    if found is None:
        version = "" if asked.agent_version is None else f" with version {asked.agent_version}"
        raise NotFound(f"There is no agent {asked.agent_id}{version}.")
    together = {**found.spec.hyperparameters, **asked.hyperparameters}
    try:
        variables(together)
    except ValueError as error:
        raise InvalidInvocation(f"hyperparameters: {error}.") from None
    return Trainee(
        tenant=found.tenant,
        version=found.version,
        hyperparameters=together,
        image=asked.docker_image or found.spec.docker_image,
        spends=True,
    )
