"""Which agent a job trains, and whether it may."""

from typing import Any, NamedTuple

from gaelp_tasks.db.database import Session
from gaelp_tasks.db.trainees import version_of
from gaelp_tasks.errors import InvalidInvocation, NotFound, PolicyViolated
from gaelp_tasks.models.agent import AgentSpec
from gaelp_tasks.models.caller import Caller
from gaelp_tasks.models.image import is_allowed
from gaelp_tasks.models.policy import POLICIES
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

    Raises NotFound, PolicyViolated, Conflict, InvalidInvocation.
    """
    subject = f"job {asked.name!r}"
    agent = await trainable(session, asked.agent_id, caller, settings=settings, subject=subject)
    version, spec = agent.version, AgentSpec.model_construct(**dict(agent))
    if asked.agent_version is not None:
        found = await version_of(session, asked.agent_id, asked.agent_version, agent.tenant)
        if found is None:
            raise NotFound(f"Agent {asked.agent_id} has no version {asked.agent_version}.")
        version, spec = found.version, found.spec
    image = asked.docker_image or spec.docker_image
    if image is not None and not is_allowed(image, settings.training_images):
        raise PolicyViolated(f"GAELP_TRAINING_IMAGES does not allow the image {image}.")
    together = {**spec.hyperparameters, **asked.hyperparameters}
    try:
        variables(together)
    except ValueError as error:
        raise InvalidInvocation(f"hyperparameters: {error}.") from None
    return Trainee(agent.tenant, version, together, image, POLICIES[agent.type].spends)
