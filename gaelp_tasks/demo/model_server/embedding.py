"""POST /api/embed and its predecessor /api/embeddings."""

import time
from collections.abc import Sequence

from aiohttp import web

from gaelp_tasks.demo.model_server.answers import whole
from gaelp_tasks.demo.model_server.engine import Engine
from gaelp_tasks.demo.model_server.faults import ApiError
from gaelp_tasks.demo.model_server.served_model import ServedModel
from gaelp_tasks.demo.model_server.state import REGISTRY
from gaelp_tasks.demo.model_server.wire import EmbedRequest, LegacyEmbedRequest

# The engine does not notice a hang-up while it embeds, so it gets a few texts at a time.
_TEXTS_AT_ONCE = 16

Vector = list[float]


async def embed(request: web.Request) -> web.Response:
    """POST /api/embed; no input: load the model, with keep_alive 0 unload it."""
    since = time.perf_counter_ns()
    asked = EmbedRequest.parse(await request.read())
    model = request.app[REGISTRY].find(asked.model)
    model.require(embed=True)
    texts = asked.texts()
    load_ns, tokens = 0, 0
    vectors: list[Vector] = []
    if not texts and asked.keep_alive == 0:
        model.unload()
    else:
        async with model.use(asked.keep_alive) as use:
            load_ns = use.load_ns
            vectors, tokens = await _embed(use.engine, model, texts, truncate=asked.truncate)
    return whole(
        {
            "model": asked.model,
            "embeddings": [_shortened(vector, asked.dimensions) for vector in vectors],
            "total_duration": time.perf_counter_ns() - since,
            "load_duration": load_ns,
            "prompt_eval_count": tokens,
        }
    )


async def legacy_embeddings(request: web.Request) -> web.Response:
    """POST /api/embeddings: one text, one vector; an empty prompt only loads the model."""
    asked = LegacyEmbedRequest.parse(await request.read())
    model = request.app[REGISTRY].find(asked.model)
    model.require(embed=True)
    async with model.use(asked.keep_alive) as use:
        texts = [asked.prompt] if asked.prompt else []
        vectors, _ = await _embed(use.engine, model, texts, truncate=True)
    return whole({"embedding": vectors[0] if vectors else []})


async def _embed(
    engine: Engine, model: ServedModel, texts: Sequence[str], *, truncate: bool
) -> tuple[list[Vector], int]:
    fitting = [await _fitting(engine, model.num_ctx, text, truncate=truncate) for text in texts]
    vectors: list[Vector] = []
    tokens = 0
    for start in range(0, len(fitting), _TEXTS_AT_ONCE):
        some, count = await engine.embed(fitting[start : start + _TEXTS_AT_ONCE])
        vectors += some
        tokens += count
    return vectors, tokens


async def _fitting(engine: Engine, num_ctx: int, text: str, *, truncate: bool) -> str | list[int]:
    """The text, or what fits of it as token ids: its beginning and the end mark. Raises ApiError 400."""
    # No token is shorter than a byte; two mark the beginning and the end.
    if len(text.encode()) <= num_ctx - 2:
        return text
    tokens = await engine.tokenize(text)
    if len(tokens) <= num_ctx:
        return text
    if not truncate:
        raise ApiError(400, f"the input has {len(tokens)} tokens and exceeds the context length of {num_ctx}")
    return [*tokens[: num_ctx - 1], tokens[-1]]


def _shortened(vector: Vector, dimensions: int | None) -> Vector:
    """The first `dimensions` numbers, made a unit vector again."""
    if not dimensions or dimensions >= len(vector):
        return vector
    head = vector[:dimensions]
    length = sum(number * number for number in head) ** 0.5 or 1.0
    return [number / length for number in head]
