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

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    status.router,
    metrics.router,
    users.router,
    keys.router,
    quotas.router,
    budgets.router,
    budgets.costs,
    tickets.router,
    invocations.router,
    batches.router,
    schedules.router,
    nodes.router,
    sockets.router,
    agents.router,
    deployments.router,
    measurements.router,
    jobs.router,
    audit.router,
)
