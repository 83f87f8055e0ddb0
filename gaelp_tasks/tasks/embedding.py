"""The work of an embedding: texts in, vectors out, in one model call."""

from typing import Any

from gaelp_tasks.models.invocation import Embedding, EmbeddingResult, StopReason
from gaelp_tasks.models.usage import Usage
from gaelp_tasks.streams import TokenStream
from gaelp_tasks.tasks.resources import Resources
from gaelp_tasks.tasks.walk import Run

__all__ = ["EmbeddingWork"]


class EmbeddingWork:
    """Vectors in the making."""

    begun = False

    def __init__(self, run: Run, asked: Embedding, at: Resources) -> None:
        self.model = ""
        self._run = run
        self._asked = asked
        self._at = at
        self._vectors: tuple[tuple[float, ...], ...] = ()
        self._usage = Usage()

    def facts(self) -> dict[str, Any]:
        """Tier, the model asked for, how many texts."""
        asked = self._asked
        return {
            "agent": "embed",
            "model": asked.model,
            "tier": asked.tier,
            "priority": asked.priority,
            "texts": len(asked.input),
        }

    async def resolve(self) -> str:
        """The model asked for, else the client's embedding model, else the node's first that embeds."""
        return await self._at.client.resolve(self._asked.model, embeds=True)

    async def do(self, stream: TokenStream) -> StopReason:  # noqa: ARG002  vectors do not stream
        """Embed all texts. Raises NodeError."""
        answer = await self._at.client.embed(self._asked.input, model=self.model)
        self._vectors, self._usage = answer.vectors, answer.usage
        return "stop"

    def result(self, stop_reason: StopReason) -> EmbeddingResult:
        """The vectors, none where it was cut."""
        return EmbeddingResult(
            id=self._run.id,
            model=self.model,
            node=self._at.node if self.model else "",
            tier=self._asked.tier,
            priority=self._asked.priority,
            embeddings=self._vectors,
            stop_reason=stop_reason,
            attempts=self._run.attempt,
            usage=self._usage,
            timings=self._run.timings(self._at),
        )
