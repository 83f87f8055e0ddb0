"""Routes, one file a noun."""

from fastapi import APIRouter

from gaelp_tasks.api.routes import health, keys, status, users

__all__ = ["ROUTERS"]

ROUTERS: tuple[APIRouter, ...] = (health.router, status.router, users.router, keys.router)
