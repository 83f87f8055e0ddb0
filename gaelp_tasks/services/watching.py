"""What who watches is shown first, and of the whole cluster again and again."""

from collections.abc import Mapping
from typing import Any

from gaelp_tasks.db.agents import Agents
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.measurements import Measurements
from gaelp_tasks.errors import NotFound
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.survey import Figures

__all__ = ["agent_now", "cluster_now"]


async def agent_now(db: Database, scope: str | None, agent_id: int) -> Mapping[str, Any]:
    """`agent` as the API shows it, and its latest `metrics`. Raises NotFound, DatabaseUnavailable."""
    async with db.reading() as session:
        agents = Agents(session, scope)
        row = await agents.row(agent_id)
        if row is None:
            raise NotFound(f"There is no agent {agent_id}.")
        [agent] = await agents.told([row])
        metrics = await Measurements(session, scope).listed(agent_id, most=1)
    latest = metrics[0].model_dump(mode="json") if metrics else None
    return {"agent": agent.model_dump(mode="json"), "metrics": latest}


def cluster_now(figures: Figures) -> dict[str, Any]:
    """Queues and nodes, without the id of any invocation: those belong to tenants."""
    return {
        "queues": [
            {"tier": tier, "model": model, **load._asdict()}
            for (tier, model), load in sorted(figures.loads.items())
        ],
        "nodes": [_node(one) for one in figures.nodes],
        "dead_letters": figures.dead,
        "parked": figures.parked,
        "held": figures.held,
        "beat_leads": figures.beat_leads,
    }


def _node(node: NodeSnapshot) -> dict[str, Any]:
    told = {"worker", "url", "healthy", "trouble", "closed", "slots", "tokens_per_s", "loaded", "release"}
    memory = node.memory.model_dump(include={"total_bytes", "free_bytes", "source"})
    return node.model_dump(mode="json", include=told) | {"busy": node.busy, "memory": memory}
