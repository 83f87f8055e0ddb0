"""What the server has: /, /api/version, /api/tags, /api/show, /api/ps, /api/pull, and the slots in use."""

from collections.abc import AsyncIterator

from aiohttp import web

from gaelp_tasks.demo.model_server.answers import Answer, lines, whole
from gaelp_tasks.demo.model_server.faults import ApiError
from gaelp_tasks.demo.model_server.registry import full_name
from gaelp_tasks.demo.model_server.served_model import ServedModel
from gaelp_tasks.demo.model_server.state import LIMITS, REGISTRY
from gaelp_tasks.demo.model_server.wire import NamedRequest

VERSION = "0.0.0-gaelp-demo"
_GREETING = "gaelp demo model server is running: a small stand-in for Ollama"


async def greet(_request: web.Request) -> web.Response:
    """GET /: says what this is."""
    return web.Response(text=_GREETING)


async def version(request: web.Request) -> web.Response:
    """GET /api/version; beyond Ollama's `version` it tells `num_parallel`, which Ollama keeps to itself."""
    return whole({"version": VERSION, "num_parallel": request.app[LIMITS].num_parallel})


async def tags(request: web.Request) -> web.Response:
    """GET /api/tags: every model, loaded or not; sizes are file sizes."""
    return whole({"models": [_listed(model) for model in request.app[REGISTRY]]})


async def ps(request: web.Request) -> web.Response:
    """GET /api/ps: loaded models; `size` is the resident memory of the model's process, none of it VRAM."""
    return whole(
        {
            "models": [
                {
                    **_identity(model),
                    "size": model.engine.resident_bytes,
                    "size_vram": 0,
                    "expires_at": model.expires_at.isoformat(),
                    "context_length": model.num_ctx,
                }
                for model in request.app[REGISTRY]
                if model.engine is not None
            ]
        }
    )


async def show(request: web.Request) -> web.Response:
    """POST /api/show: details, capabilities and the metadata of the GGUF file."""
    asked = NamedRequest.parse(await request.read())
    model = request.app[REGISTRY].find(asked.asked_for)
    return whole(
        {
            "modelfile": f"FROM {model.info.path.name}",
            "parameters": f"num_ctx {model.num_ctx}",
            "template": model.info.metadata.get("tokenizer.chat_template", ""),
            "details": _details(model),
            "model_info": model.info.shown(verbose=asked.verbose),
            "capabilities": ["embedding"] if model.embed else ["completion", "tools"],
            "modified_at": model.info.modified_at.isoformat(),
        }
    )


async def pull(request: web.Request) -> web.StreamResponse:
    """POST /api/pull: a model that is here is soon pulled; others cannot be."""
    asked = NamedRequest.parse(await request.read())
    registry = request.app[REGISTRY]
    if asked.asked_for not in registry:
        known = ", ".join(model.name for model in registry)
        raise ApiError(
            404, f'pull model manifest: "{asked.asked_for}" does not exist; this server has {known} only'
        )
    if not asked.stream:
        return whole({"status": "success"})
    return await lines(request, _pulling(registry.find(asked.asked_for)))


async def slots(request: web.Request) -> web.Response:
    """GET /api/gaelp/slots: per model its slots and the requests that hold, await and compute in one.

    `processing` is the engine's own word: it stays up until a cancelled generation has really stopped.
    """
    return whole({full_name(model.name): await _slots(model) for model in request.app[REGISTRY]})


async def _pulling(model: ServedModel) -> AsyncIterator[list[Answer]]:
    layer = f"sha256:{model.info.sha256}"
    size = model.info.size_bytes
    yield [{"status": "pulling manifest"}]
    yield [{"status": f"pulling {model.info.sha256[:12]}", "digest": layer, "total": size, "completed": size}]
    yield [{"status": "success"}]


async def _slots(model: ServedModel) -> Answer:
    seats = model.seats
    processing = await model.engine.processing() if model.engine else 0
    return {"slots": seats.slots, "busy": seats.busy, "waiting": seats.waiting, "processing": processing}


def _listed(model: ServedModel) -> Answer:
    return {
        **_identity(model),
        "modified_at": model.info.modified_at.isoformat(),
        "size": model.info.size_bytes,
    }


def _identity(model: ServedModel) -> Answer:
    name = full_name(model.name)
    return {"name": name, "model": name, "digest": model.info.sha256, "details": _details(model)}


def _details(model: ServedModel) -> Answer:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.info.architecture,
        "families": [model.info.architecture],
        "parameter_size": model.info.parameter_size,
        "quantization_level": model.info.quantization,
    }
