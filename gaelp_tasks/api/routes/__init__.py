"""Routes, one file a noun."""

from fastapi import APIRouter

from gaelp_tasks.api.routes import budgets, health, invocations, keys, quotas, status, tickets, users
from gaelp_tasks.api.watching import sockets

__all__ = ["ROUTERS"]

ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    status.router,
    users.router,
    keys.router,
    quotas.router,
    budgets.router,
    budgets.costs,
    tickets.router,
    invocations.router,
    sockets.router,
)
