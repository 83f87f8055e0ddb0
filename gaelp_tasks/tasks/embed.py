"""`gaelp.embed`."""

from collections.abc import Mapping, Sequence
from typing import Any

from gaelp_tasks.celery_app import app
from gaelp_tasks.models.invocation import DEFAULT_PRIORITY, Embedding
from gaelp_tasks.tasks.base import ModelTask, Reply

__all__ = ["embed"]


class EmbedTask(ModelTask):
    """Embeds texts."""

    abstract = True
    parse = Embedding.parse


@app.task(bind=True, base=EmbedTask, name="gaelp.embed")
def embed(
    self: ModelTask,
    input: str | Sequence[str] | None = None,  # noqa: A002  Ollama's name; long texts lie beside the message
    *,
    model: str | None = None,
    tier: str | None = None,
    priority: int = DEFAULT_PRIORITY,
    tenant: str | None = None,
    cache: bool | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Reply:
    """Embed one text or a list of them.

    Returns a mapping with `embeddings`: one vector per text, in the order given. Raises InvalidInvocation at
    the call; the run fails with a NodeError once its attempts are spent.
    """
    from gaelp_tasks.tasks.embedding import EmbeddingWork  # noqa: PLC0415  only a running task needs clients

    asked = {name: value for name, value in locals().items() if name not in {"self", "EmbeddingWork"}}
    return self.perform(asked, EmbeddingWork)
