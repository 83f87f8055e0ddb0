"""Routes, one file a noun."""

from fastapi import APIRouter

from gaelp_tasks.api.routes import health, status

__all__ = ["ROUTERS"]

ROUTERS: tuple[APIRouter, ...] = (health.router, status.router)
