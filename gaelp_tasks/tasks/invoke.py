"""`gaelp.invoke_agent`."""

from collections.abc import Mapping, Sequence
from typing import Any

from gaelp_tasks.celery_app import app
from gaelp_tasks.models.invocation import DEFAULT_PRIORITY, Invocation
from gaelp_tasks.models.shape import as_format, as_json
from gaelp_tasks.tasks.base import ModelTask, Reply
from gaelp_tasks.tasks.idempotency import id_of

__all__ = ["invoke_agent"]


class InvocationTask(ModelTask):
    """Calls an agent."""

    abstract = True
    parse = Invocation.parse

    def signature(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *more: Any,
        **how: Any,
    ) -> Any:
        """Celery's signature in JSON: in a chain it travels before a class or a message could be accepted."""
        plain = {name: _plain(value) if name in AS_JSON else value for name, value in (kwargs or {}).items()}
        made = super().signature(tuple(_plain(value) for value in args or ()), plain, *more, **how)
        key, tenant = plain.get("idempotency_key"), plain.get("tenant")
        if isinstance(key, str) and isinstance(tenant, str | None):
            made.options.setdefault("task_id", id_of(key, tenant))  # before a chain or group gives it another
        return made


#: arguments for which users may give objects
AS_JSON = ("prompt", "messages", "documents", "format")


def _plain(value: Any) -> Any:
    """JSON, where there is a form for it; what has none is refused when it is accepted."""
    try:
        return value if isinstance(value, str) else as_json(as_format(value))
    except ValueError:
        return value


@app.task(bind=True, base=InvocationTask, name="gaelp.invoke_agent")
def invoke_agent(  # noqa: PLR0913  the contract's arguments
    self: ModelTask,
    prompt: str | Mapping[str, Any] | None = None,
    *,
    messages: Sequence[Mapping[str, Any]] | None = None,
    agent: str = "chat",
    model: str | None = None,
    tier: str | None = None,
    priority: int = DEFAULT_PRIORITY,
    options: Mapping[str, Any] | None = None,
    format: str | Mapping[str, Any] | type[Any] | None = None,  # noqa: A002  Ollama's name
    tools: Sequence[str | Mapping[str, Any]] | None = None,
    images: Sequence[str] | None = None,
    think: bool | str | None = None,
    mode: str | None = None,
    documents: Sequence[str | Mapping[str, Any]] | None = None,
    parser: str | None = None,
    cache: bool | None = None,
    deadline_s: float | None = None,
    stall_timeout_s: float | None = None,
    queue_ttl_s: float | None = None,
    idempotency_key: str | None = None,
    most_tokens: int | None = None,
    tenant: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Reply:
    """Let an agent answer a prompt on a node that has room for its model.

    Returns the result mapping of the contract, section 2; a cut run returns its partial text. `priority` is
    1 to 10, 10 first; times are seconds. `format` may be a pydantic class; `tools` are names of registered
    tools, which the worker runs, or schemas, whose calls come back; after `most_tokens` the answer is cut.
    Raises InvalidInvocation at the call; the run fails with a NodeError once its attempts are spent.
    """
    from gaelp_tasks.tasks.generation import Generation  # noqa: PLC0415  only a running task needs agents

    asked = {name: value for name, value in locals().items() if name not in {"self", "Generation"}}
    return self.perform(asked, Generation)
