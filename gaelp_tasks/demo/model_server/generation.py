"""POST /api/chat and /api/generate."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from gaelp_tasks.demo.model_server.answers import Answer, lines, now, whole
from gaelp_tasks.demo.model_server.conversation import (
    Turn,
    asks_for_call,
    call_schema,
    read_call,
    turns,
    without_oldest,
)
from gaelp_tasks.demo.model_server.engine import End, Engine
from gaelp_tasks.demo.model_server.faults import ApiError, EngineFailed
from gaelp_tasks.demo.model_server.served_model import ServedModel
from gaelp_tasks.demo.model_server.state import REGISTRY
from gaelp_tasks.demo.model_server.wire import ChatRequest, GenerateRequest, WritingRequest

_CALL_LIMIT = {
    "n_predict": 512
}  # a longer call is a model gone astray; num_predict of the request counts first
_DEFAULTS = {"repeat_penalty": 1.1}  # Ollama's; by the engine's 1.0 a small model says one thing for ever


@dataclass(frozen=True, kw_only=True)
class Job:
    """One generation: what to ask of the engine, and how its text looks in the answer."""

    model: ServedModel
    asked: WritingRequest
    prompt: str | Sequence[Turn]
    constraint: dict[str, Any]
    shape: Callable[[str], Answer]
    in_one_piece: bool = False


async def chat(request: web.Request) -> web.StreamResponse:
    """POST /api/chat; no messages: load the model, with keep_alive 0 unload it."""
    asked = ChatRequest.parse(await request.read())
    model = request.app[REGISTRY].find(asked.model)
    model.require(embed=False)
    asked.refuse_what_is_missing(images=any(message.images for message in asked.messages))
    if not asked.messages:
        return await _load_or_unload(model, asked, _as_message)
    tools = asked.tools or []
    calls = asks_for_call(asked.messages, tools)
    return await _answer(
        request,
        Job(
            model=model,
            asked=asked,
            prompt=turns(asked.messages, tools),
            constraint={"json_schema": call_schema(tools), **_CALL_LIMIT} if calls else asked.constraint(),
            shape=_as_call if calls else _as_message,
            in_one_piece=calls,
        ),
    )


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /api/generate; no prompt: load the model, with keep_alive 0 unload it."""
    asked = GenerateRequest.parse(await request.read())
    model = request.app[REGISTRY].find(asked.model)
    model.require(embed=False)
    asked.refuse_what_is_missing(images=bool(asked.images))
    if not asked.prompt:
        return await _load_or_unload(model, asked, _as_response)
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    return await _answer(
        request,
        Job(
            model=model,
            asked=asked,
            prompt=asked.prompt if asked.raw else [*system, {"role": "user", "content": asked.prompt}],
            constraint=asked.constraint(),
            shape=_as_response,
        ),
    )


def _as_message(text: str) -> Answer:
    return {"message": {"role": "assistant", "content": text}}


def _as_response(text: str) -> Answer:
    return {"response": text}


def _as_call(text: str) -> Answer:
    call = read_call(text) if text else None
    if call is None:
        return _as_message(text)
    return {"message": {"role": "assistant", "content": "", "tool_calls": [call]}}


async def _answer(request: web.Request, job: Job) -> web.StreamResponse:
    if not job.asked.stream:
        text, stats = await _whole_text(job)
        return whole(_last(job, text, stats))
    parts = _in_one_piece(job) if job.in_one_piece else _piece_by_piece(job)
    async with aclosing(parts):
        return await lines(request, parts)


async def _piece_by_piece(job: Job) -> AsyncGenerator[list[Answer]]:
    async with aclosing(_run(job)) as run:
        async for texts, stats in run:
            time_of_arrival = now()
            part = [_chunk(job, text, time_of_arrival) for text in texts]
            yield part if stats is None else [*part, _last(job, "", stats)]


async def _in_one_piece(job: Job) -> AsyncGenerator[list[Answer]]:
    text, stats = await _whole_text(job)
    yield [_chunk(job, text, now()), _last(job, "", stats)]


async def _whole_text(job: Job) -> tuple[str, Answer]:
    """The whole text; streamed inside all the same, because only then can a hang-up stop the engine."""
    text: list[str] = []
    async with aclosing(_run(job)) as run:
        async for texts, stats in run:
            text += texts
            if stats is not None:
                return "".join(text), stats
    raise EngineFailed("the model's engine ended its answer without saying why")


async def _run(job: Job) -> AsyncGenerator[tuple[Sequence[str], Answer | None]]:
    """Texts as they come; with the last of them the figures of the whole."""
    since = time.perf_counter_ns()
    async with job.model.use(job.asked.keep_alive) as use:
        fitting = await _what_fits(use.engine, job)
        request = {**_DEFAULTS, **job.constraint, **job.asked.engine_options(), **fitting}
        async with aclosing(use.engine.complete(request)) as stream:
            async for pieces in stream:
                yield pieces.texts, _stats(pieces.end, since, use.load_ns) if pieces.end else None


async def _what_fits(engine: Engine, job: Job) -> dict[str, Any]:
    """The engine's `prompt`, or `messages` where the answer is constrained, less the oldest turns if need be.

    Leaves room for one token at least. Raises ApiError 400 where the last turn alone is too long.
    """
    room, turns_left = job.model.num_ctx, job.prompt
    while True:
        prompt = turns_left if isinstance(turns_left, str) else await engine.render(turns_left)
        # No token is shorter than a byte, and one may mark the beginning.
        is_short = len(prompt.encode()) < room - 1
        count = 0 if is_short else len(await engine.tokenize(prompt))
        if count < room:
            return {"messages": turns_left} if job.constraint else {"prompt": prompt}
        shorter = None
        if job.asked.truncate and not isinstance(turns_left, str):
            shorter = without_oldest(turns_left)
        if shorter is None:
            raise ApiError(
                400,
                f"the prompt has {count} tokens and the context of this server {room}; shorten the prompt"
                " or start the server with a larger --num-ctx",
            )
        turns_left = shorter


def _chunk(job: Job, text: str, created_at: str) -> Answer:
    return {"model": job.asked.model, "created_at": created_at, **job.shape(text), "done": False}


def _last(job: Job, text: str, stats: Answer) -> Answer:
    return {"model": job.asked.model, "created_at": now(), **job.shape(text), "done": True, **stats}


def _stats(end: End, since: int, load_ns: int) -> Answer:
    return {"total_duration": time.perf_counter_ns() - since, "load_duration": load_ns, **asdict(end)}


async def _load_or_unload(
    model: ServedModel, asked: WritingRequest, shape: Callable[[str], Answer]
) -> web.StreamResponse:
    since = time.perf_counter_ns()
    reason, load_ns = "load", 0
    if asked.keep_alive == 0:
        model.unload()
        reason = "unload"
    else:
        async with model.use(asked.keep_alive) as use:
            load_ns = use.load_ns
    answer = {
        "model": asked.model,
        "created_at": now(),
        **shape(""),
        "done": True,
        "done_reason": reason,
        "total_duration": time.perf_counter_ns() - since,
        "load_duration": load_ns,
    }
    return whole(answer)
