"""The web application: routes, and errors as Ollama words them."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from gaelp_tasks.demo.model_server import catalogue, embedding, generation
from gaelp_tasks.demo.model_server.answers import whole
from gaelp_tasks.demo.model_server.faults import ApiError
from gaelp_tasks.demo.model_server.gguf_info import GgufInfo
from gaelp_tasks.demo.model_server.registry import Registry
from gaelp_tasks.demo.model_server.served_model import Limits, ServedModel
from gaelp_tasks.demo.model_server.state import LIMITS, REGISTRY

_MAX_BODY_BYTES = 8 * 1024 * 1024
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}

ROUTES = (
    web.get("/", catalogue.greet),
    web.get("/api/version", catalogue.version),
    web.get("/api/tags", catalogue.tags),
    web.get("/api/ps", catalogue.ps),
    web.get("/api/gaelp/slots", catalogue.slots),
    web.post("/api/show", catalogue.show),
    web.post("/api/pull", catalogue.pull),
    web.post("/api/chat", generation.chat),
    web.post("/api/generate", generation.generate),
    web.post("/api/embed", embedding.embed),
    web.post("/api/embeddings", embedding.legacy_embeddings),
)


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model to serve: its name, what its file says, and whether it embeds (else it writes)."""

    name: str
    info: GgufInfo
    embed: bool


def build_app(models: Sequence[NamedModel], limits: Limits) -> web.Application:
    """The application; nothing is loaded before the first request, every child is ended at its cleanup."""
    app = web.Application(middlewares=[_errors_as_json, _loopback_only], client_max_size=_MAX_BODY_BYTES)
    app[LIMITS] = limits
    app.add_routes(ROUTES)

    async def engines(app: web.Application) -> AsyncIterator[None]:
        # A kept-open connection would hold one of the engine's few HTTP threads, so each call has its own.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            registry = Registry(
                [ServedModel(one.name, one.info, embed=one.embed, limits=limits, http=http) for one in models]
            )
            app[REGISTRY] = registry
            yield
            await registry.close()

    app.cleanup_ctx.append(engines)
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return whole({"error": str(error)}, error.status)
    except web.HTTPRequestEntityTooLarge:
        return whole({"error": f"the request body is larger than {_MAX_BODY_BYTES} bytes"}, 413)
    except web.HTTPException as error:
        reason = f"{request.method} {request.path}: {error.reason}; this is a small stand-in for Ollama"
        return whole({"error": reason}, error.status)


@web.middleware
async def _loopback_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse pages of other origins, and names that were made to point here."""
    origin = request.headers.get("Origin")
    hosts = {urlsplit(f"//{request.host}").hostname, urlsplit(origin).hostname if origin else "localhost"}
    if not hosts <= _LOOPBACK:
        raise ApiError(403, "this server answers programs on its own machine only")
    return await handler(request)
