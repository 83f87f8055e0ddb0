"""Which agent a job trains, and whether it may."""

from typing import Any, NamedTuple

from gaelp_tasks.db.database import Session
from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.training import NewJob, variables
from gaelp_tasks.services.agents import trainable
from gaelp_tasks.settings import Settings

__all__ = ["Trainee", "trainee"]


class Trainee(NamedTuple):
    """What of its agent goes into a job."""

    tenant: str
    version: int
    hyperparameters: dict[str, Any]  #: the agent's, and over them the job's
    image: str | None
    spends: bool


async def trainee(session: Session, caller: Caller, asked: NewJob, settings: Settings) -> Trainee:
    """The agent as it may be trained now; the decision is in the audit, so call this in a `trail`.

    Raises NotFound, NotAllowed, PolicyViolated, Conflict, InvalidInvocation.
    """
    may = await trainable(
        session,
        asked.agent_id,
        caller,
        settings=settings,
        version=asked.agent_version,
        image=asked.docker_image,
        subject=f"job {asked.name!r}",
    )
    together = {**may.spec.hyperparameters, **asked.hyperparameters}
    try:
        variables(together)
    except ValueError as error:
        raise InvalidInvocation(f"hyperparameters: {error}.") from None
    return Trainee(may.tenant, may.version, together, may.spec.docker_image, may.spends)
