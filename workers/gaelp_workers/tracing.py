"""What this worker tells OpenTelemetry: each claim of a run, its load, and each call of a model inside it.

Celery's signals tell, on the thread of the task: prerun comes before anything of ours, postrun after the
result is stored and what follows is published. A run's coroutine takes that thread's context along to the
loop, so that spans begun there belong to the claim. opentelemetry-instrumentation-celery is not the base: it
writes the texts of errors into its spans, knows neither claims nor what became of a run, and leaves a thread
in the span of a message that could not be published.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import wraps
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from celery import bootsteps, signals
from celery.states import FAILURE, IGNORED, REJECTED, RETRY, SUCCESS

from gaelp_tasks import logs
from gaelp_tasks.asked import arguments, asked_for
from gaelp_tasks.clients import ChatResponse, Embeddings
from gaelp_tasks.lifecycle import state_of
from gaelp_tasks.models.usage import Usage
from gaelp_tasks.queues import CALLS
from gaelp_tasks.tasks.resources import Resources, shared_resources
from gaelp_workers.metrics import is_retry
from gaelp_workers.steps import NodeDuties

if TYPE_CHECKING:
    from gaelp_tasks import tracing

__all__ = ["Listening", "Tracing", "begins", "ends", "tell_of_models"]

CLAIM = "gaelp_span"  #: of a request: the span of its claim
FANS_OUT = frozenset({"gaelp.run_batch"})  #: each message of these begins a trace of its own
STOPPED = "stopped: "  #: how the reason of a run that was stopped begins
BEGUN = "first_token"  #: the event, in the span of the call


def begins(task: str, request: Any, now: float) -> dict[str, Any]:
    """What is known of a run when it begins; `now` is Unix time."""
    published_at = request.get("gaelp_published_at")
    about = {
        "messaging.client.id": request.hostname,
        "gaelp.task": task,
        "gaelp.claim": request.get("gaelp_claim"),
        "gaelp.attempt": (request.retries or 0) + 1,
    }
    if published_at is not None:
        about["gaelp.queue_wait_s"] = max(0.0, now - published_at)
    if task in CALLS:
        asked = asked_for(task, request, arguments(request))
        about |= {
            "gen_ai.operation.name": "embeddings" if CALLS[task] else "invoke_agent",
            "gen_ai.provider.name": "ollama",
            "gen_ai.agent.name": asked["agent"],
            "gen_ai.request.model": asked["model"],
            "gaelp.tier": asked["tier"].value,
            "gaelp.priority": asked["priority"],
        }
    return about


def ends(state: str | None, told: Any, retries: int, *, calls: bool) -> dict[str, Any]:
    """What became of a run, by what Celery says of it; `calls` says that it calls a model."""
    if state == SUCCESS:
        return answered(told) if calls and isinstance(told, Mapping) else {"gaelp.outcome": "done"}
    if state == RETRY:
        return {"gaelp.outcome": "retry" if is_retry(told, retries) else "snooze"}
    if state == REJECTED:
        why = getattr(told, "reason", None)
        by = why.removeprefix(STOPPED) if isinstance(why, str) and why.startswith(STOPPED) else None
        return {"gaelp.outcome": "snooze", "gaelp.stopped_by": by}
    if state == IGNORED:
        return {"gaelp.outcome": "fenced" if calls else "ignored"}
    return {"gaelp.outcome": "failed"}


def answered(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a result tells, but for its text."""
    usage, timings, stop_reason = result["usage"], result["timings"], result["stop_reason"]
    return {
        "gaelp.outcome": state_of(SUCCESS, stop_reason=stop_reason, in_queue=False).value,
        "gaelp.stop_reason": stop_reason,
        "gaelp.node": result["node"],
        "gaelp.cached": bool(result["cached"]),
        "gaelp.load_s": timings["load_s"],
        "gaelp.first_token_s": timings["first_token_s"],
        "gen_ai.response.model": result["model"],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }


class Listening:
    """Hears Celery begin and end runs, and has a span for each; `clock` gives Unix time."""

    def __init__(self, tracing: "tracing.Tracing", clock: Callable[[], float] = time) -> None:
        self._tracing = tracing
        self._clock = clock

    def connect(self) -> None:
        """Hear Celery from now on."""
        signals.task_prerun.connect(self.on_begin, weak=False)
        signals.task_postrun.connect(self.on_end, weak=False)

    def disconnect(self) -> None:
        """Hear no more."""
        signals.task_prerun.disconnect(self.on_begin)
        signals.task_postrun.disconnect(self.on_end)

    def on_begin(self, sender: Any, **_: Any) -> None:
        """A run begins on this thread."""
        request = sender.request
        if request.is_eager:  # nobody's message
            return
        queue = (request.delivery_info or {}).get("routing_key") or ""
        about = begins(sender.name, request, self._clock())
        fans_out = sender.name in FANS_OUT
        setattr(
            request,
            CLAIM,
            self._tracing.begin(queue, request.id, vars(request), about, fans_out=fans_out),
        )

    def on_end(self, sender: Any, state: str | None, retval: Any, **_: Any) -> None:
        """It has ended; its request is still that of its thread."""
        request = sender.request
        claim = vars(request).pop(CLAIM, None)
        if claim is None:
            return
        about = ends(state, retval, request.retries or 0, calls=sender.name in CALLS)
        error = retval if state == FAILURE else None
        if about["gaelp.outcome"] == "retry":
            error = retval.exc
        self._tracing.end(claim, about, error)


def tell_of_models(at: Resources, tracing: "tracing.Tracing") -> None:
    """Have spans for what runs ask of models: loads, chats, embeddings (which share the calls they wait for).

    What is asked outside of a traced run, as looks at a node are, has none.
    """
    client: Any = at.client
    joiner: Any = at.joiner
    client.chat = _chats(client.chat, tracing)
    client.load = _loads(client.load, tracing)
    joiner.embed = _embeds(joiner.embed, tracing)


def _chats(
    chat: Callable[..., AsyncGenerator[ChatResponse, None]], tracing: "tracing.Tracing"
) -> Callable[..., AsyncGenerator[ChatResponse, None]]:
    async def told(*args: Any, **asked: Any) -> AsyncGenerator[ChatResponse, None]:
        with tracing.asking("chat", asked.get("model") or "") as span:
            async with aclosing(chat(*args, **asked)) as chunks:
                begun = False
                async for chunk in chunks:
                    if not begun and (chunk.content or chunk.thinking or chunk.tool_calls):
                        begun = True
                        span.add_event(BEGUN)
                    if chunk.done:
                        span.set_attributes(of_call(chunk))
                        span.set_attribute("gen_ai.response.finish_reasons", [chunk.done_reason or "stop"])
                    yield chunk

    @wraps(chat)
    def chosen(*args: Any, **asked: Any) -> AsyncGenerator[ChatResponse, None]:
        return told(*args, **asked) if tracing.is_inside() else chat(*args, **asked)

    return chosen


def _loads(
    load: Callable[..., Awaitable[float]], tracing: "tracing.Tracing"
) -> Callable[..., Awaitable[float]]:
    @wraps(load)
    async def told(model: str | None = None) -> float:
        if not tracing.is_inside():
            return await load(model)
        with tracing.asking("load", model or ""):
            return await load(model)

    return told


def _embeds(
    embed: Callable[..., Awaitable[Embeddings]], tracing: "tracing.Tracing"
) -> Callable[..., Awaitable[Embeddings]]:
    @wraps(embed)
    async def told(texts: Sequence[str], *, model: str, rank: int = 0) -> Embeddings:
        if not tracing.is_inside():
            return await embed(texts, model=model, rank=rank)
        with tracing.asking("embeddings", model, **{"gaelp.texts": len(texts)}) as span:
            answer = await embed(texts, model=model, rank=rank)
            span.set_attributes(of_call(answer))
            return answer

    return told


def of_call(answer: ChatResponse | Embeddings) -> dict[str, Any]:
    """Model, node and tokens of an answer."""
    usage, node = answer.usage or Usage(), urlsplit(answer.node)
    about = {
        "gen_ai.response.model": answer.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "server.address": node.hostname,
        "server.port": node.port,
    }
    return {name: value for name, value in about.items() if value not in {None, ""}}


class Tracing(bootsteps.StartStopStep):
    """Tell OpenTelemetry of each claim; nothing at all where GAELP_TRACES is off."""

    requires = (NodeDuties,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self.enabled = c.app.settings.traces
        self._listening: Listening | None = None
        if self.enabled:
            self._tracing = c.app.tracing

    def start(self, c: Any) -> None:
        """Begin; after a reconnect it simply goes on."""
        if self._listening is not None:
            return
        self._tracing.export("gaelp-worker", c.hostname)
        logs.BESIDE.append(self._tracing.ids)
        tell_of_models(shared_resources(), self._tracing)
        self._listening = Listening(self._tracing)
        self._listening.connect()

    def shutdown(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """Nothing runs here any more; what is left is sent when the process ends."""
        if self._listening is not None:
            self._listening.disconnect()
