"""The work of an embedding: texts in, vectors out; known ones from the cache, the others in a joined call."""

from typing import Any

from gaelp_tasks.models.invocation import Embedding, EmbeddingResult, InvocationResult, StopReason
from gaelp_tasks.models.usage import Usage
from gaelp_tasks.streams import TokenStream
from gaelp_tasks.tasks.known import Vector, packed, unpacked, vector_names
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
        self._tally = at.tally(run.id)
        self._vectors: list[Vector | None] = [None] * len(asked.input)
        self._names: list[str] = []  #: of the vectors in the cache; none where it is not used
        self._digest = ""
        self._cached = 0
        self._fresh: dict[int, Vector] = {}  #: made in this run, by place
        self._made_at = 0.0  #: `tick`
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

    async def recall(self, stream: TokenStream) -> bool:  # noqa: ARG002  vectors do not stream
        """Take the vectors that are known; True where that is all of them."""
        asked, at = self._asked, self._at
        if at.settings.cache_embeddings if asked.cache is None else asked.cache:
            self._digest = await at.digests.of(self.model)
        if not self._digest:
            return False
        self._names = vector_names(
            asked.input, tenant=asked.tenant, digest=self._digest, context=at.cache_context()
        )
        self._vectors = [unpacked(found) for found in await at.cache.recall(self._names)]
        self._cached = sum(vector is not None for vector in self._vectors)
        if self._cached < len(asked.input):
            return False
        at.seats.has(self._run.id)
        return True

    async def load(self) -> float:
        """Have the model in memory, one question for all embeddings that ask now."""
        return await self._at.joiner.load(self.model)

    async def do(self, stream: TokenStream) -> StopReason:  # noqa: ARG002  vectors do not stream
        """Embed the texts whose vectors are not known. Raises NodeError."""
        at, missing = self._at, self._missing()
        at.seats.asks(self._run.id)
        answer = await at.joiner.embed(
            [self._asked.input[place] for place in missing], model=self.model, rank=self._asked.tier.rank
        )
        at.seats.has(self._run.id)
        self._made_at = at.tick()
        self._fresh = dict(zip(missing, answer.vectors, strict=True))
        for place, vector in self._fresh.items():
            self._vectors[place] = vector
        self._usage = answer.usage
        self._tally.count(answer.node, answer.model, 0)
        return "stop"

    def _missing(self) -> list[int]:
        return [place for place, vector in enumerate(self._vectors) if vector is None]

    def result(self, stop_reason: StopReason) -> EmbeddingResult:
        """The vectors, none where it was cut."""
        whole = stop_reason == "stop"
        return EmbeddingResult(
            id=self._run.id,
            model=self.model,
            node=(self._tally.node or self._at.node) if self.model else "",
            tier=self._asked.tier,
            priority=self._asked.priority,
            embeddings=tuple(vector for vector in self._vectors if vector is not None) if whole else (),
            stop_reason=stop_reason,
            attempts=self._run.attempt,
            usage=self._usage,
            timings=self._run.timings(self._at),
            cached=self._cached if whole else 0,
        )

    async def keep(self, result: InvocationResult | EmbeddingResult) -> None:
        """Remember the vectors that were made, if the model is still the one that was looked up."""
        at, made_at = self._at, self._made_at
        if not self._names or not self._fresh:
            return
        if await at.digests.is_still(self._digest, self.model, result.node, since=made_at):
            await at.cache.keep({self._names[place]: packed(vector) for place, vector in self._fresh.items()})
