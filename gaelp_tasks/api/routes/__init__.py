"""Routes, one file a noun."""

from fastapi import APIRouter

from gaelp_tasks.api.routes import (
    agents,
    audit,
    batches,
    budgets,
    deployments,
    health,
    invocations,
    jobs,
    keys,
    measurements,
    metrics,
    nodes,
    quotas,
    schedules,
    status,
    tickets,
    users,
)
from gaelp_tasks.api.watching import sockets

__all__ = ["ROUTERS"]

#: each request is compared with one after the other: what is asked most comes first
ROUTERS: tuple[APIRouter, ...] = (
    invocations.router,
    agents.router,
    measurements.router,
    jobs.router,
    health.router,
    status.router,
    metrics.router,
    users.router,
    keys.router,
    quotas.router,
    budgets.router,
    budgets.costs,
    tickets.router,
    batches.router,
    schedules.router,
    nodes.router,
    sockets.router,
    deployments.router,
    audit.router,
)
