"""The agent that gathers and weighs."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from gaelp_tasks.agents.base import BaseAgent
from gaelp_tasks.agents.sources import Source, Vector, asked_at, behind, best, cut, similarity, with_sources
from gaelp_tasks.clients.base import ChatResponse
from gaelp_tasks.errors import InvalidInvocation, ModelMissing, NodeError
from gaelp_tasks.models import Message, as_documents
from gaelp_tasks.models.frozen import JsonObject, well_formed
from gaelp_tasks.texts.chunks import sentences
from gaelp_tasks.texts.citations import MarkReader

__all__ = ["ResearchAgent"]

SHORTEST = 12  #: characters of a sentence that can be told from others
MOST_SENTENCES = 200


class ResearchAgent(BaseAgent):
    """An account of what is known, how well, and what is not; with `documents`, resting on them.

    The chunks of the documents that fit the question best are put into the prompt, numbered, and the answer
    cites them: `data["citations"]` tells where each is from. A citation of a number that no chunk has is
    dropped, from the text too. Where the model marks nothing, sentences are matched with chunks by their
    embeddings, and those citations say so (`"by": "similarity"`). Documents that fit whole are used whole and
    need no embedding model.
    """

    system_prompt = """\
You prepare short research notes for a reader who will decide something with them.

- Begin with the finding: two or three sentences that answer the question.
- Then give the evidence in sections, one for each aspect of the question. Keep facts, interpretations \
and opinions apart, and give dates and magnitudes with their units.
- If you are given numbered sources, rest on them: after each statement taken from one, put its number in \
square brackets. Say where sources contradict each other, and which you follow and why.
- What you state from general knowledge you mark as such. Never invent a source, a title, a quotation, a \
figure or an address; without a source, say that you have none.
- Say how sure each main statement is, and what would change it.
- Close with what remains open: questions not answered here, and where an answer could be found."""

    chunk_chars: int = 800  #: of one chunk, at most
    overlap_chars: int = 100  #: that neighbouring chunks share
    budget_chars: int = 4000  #: of all chunks in the prompt, about a quarter as many tokens
    most_chunks: int = 8  #: in the prompt, where not all fit
    similar: float = 0.5  #: cosine from which a sentence counts as resting on a chunk

    async def process(
        self, messages: tuple[Message, ...], *, documents: Any = None, **options: Any
    ) -> AsyncGenerator[ChatResponse, None]:
        """Choose sources, ask with them, read the marks of the answer. Raises ModelMissing, see `_choose`."""
        sources, vectors = await self._choose(messages, documents) if documents else ([], [])
        asked = with_sources(messages, sources) if sources else messages
        marks = MarkReader(range(1, len(sources) + 1)) if sources and options.get("format") is None else None
        text: list[str] = []
        done = False
        async with aclosing(super().process(asked, **options)) as answer:
            async for chunk in answer:
                done = done or chunk.done
                content = marks.feed(chunk.content) if marks else chunk.content
                content += marks.end() if marks and chunk.done else ""
                text.append(content)
                changed: dict[str, Any] = {"content": content}
                if chunk.done and sources:
                    cited = await self._cited("".join(text), marks, sources, vectors)
                    changed["data"] = {**(chunk.data or {}), "citations": cited}
                yield chunk.model_copy(update=changed)
        if sources and not done:  # a client that never says done
            text.append(marks.end() if marks else "")
            cited = await self._cited("".join(text), marks, sources, vectors)
            yield ChatResponse(content=text[-1], data={"citations": cited})

    async def _choose(
        self, messages: Sequence[Message], documents: Any
    ) -> tuple[list[Source], Sequence[Vector]]:
        """The sources for the last question, and their vectors, none where all fitted.

        Raises ModelMissing where they do not fit whole and the node has no embedding model.
        """
        every = cut(as_documents(documents), size=self.chunk_chars, overlap=self.overlap_chars)
        if not every:
            raise InvalidInvocation("documents: there is no text in them.")
        total = sum(len(source.text) for source in every)
        if total <= self.budget_chars:
            return every, []
        question = messages[asked_at(messages)].content
        try:
            asked, *known = await self._embed([question or " ", *(source.text for source in every)])
        except ModelMissing as missing:
            raise ModelMissing(
                f"The documents have {total:,} characters and {self.budget_chars:,} fit into a prompt; an "
                f"embedding model has to choose among them. {missing}",
                node=missing.node,
            ) from missing
        scores = await asyncio.to_thread(lambda: [similarity(asked, vector) for vector in known])
        chosen = best(every, scores, most=self.most_chunks, budget=self.budget_chars)
        place = {(source.document, source.span): vector for source, vector in zip(every, known, strict=True)}
        return chosen, [place[source.document, source.span] for source in chosen]

    async def _cited(
        self, text: str, marks: MarkReader | None, sources: Sequence[Source], vectors: Sequence[Vector]
    ) -> list[JsonObject]:
        """The citations of a finished answer; without marks those that its sentences let us infer."""
        if marks and marks.cited:
            return [sources[number - 1].data("model") for number in marks.cited]
        text = well_formed(text)
        said = [span.of(text) for span in sentences(text)]
        said = [sentence for sentence in said if len(sentence) >= SHORTEST][:MOST_SENTENCES]
        if not said:
            return []
        more = [] if vectors else [source.text for source in sources]
        try:
            found = await self._embed([*said, *more])
        except NodeError:  # the answer is whole without
            return []
        known = vectors or found[len(said) :]
        places = await asyncio.to_thread(behind, found[: len(said)], known, at_least=self.similar)
        return [sources[place].data("similarity") for place in places]

    async def _embed(self, texts: Sequence[str]) -> Sequence[Vector]:
        model = await self.client.resolve(None, embeds=True)
        return (await self.client.embed(texts, model=model or None)).vectors
