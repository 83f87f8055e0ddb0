"""What the handlers share."""

from aiohttp import web

from gaelp_tasks.demo.model_server.registry import Registry
from gaelp_tasks.demo.model_server.served_model import Limits

REGISTRY = web.AppKey("registry", Registry)
LIMITS = web.AppKey("limits", Limits)
