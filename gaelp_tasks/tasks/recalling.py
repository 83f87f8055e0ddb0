"""The exact answer of a chat, where it is known: looked for before the model is loaded, kept when whole."""

from typing import Any

from gaelp_tasks.errors import NodeError
from gaelp_tasks.models.invocation import Invocation, InvocationResult
from gaelp_tasks.registry import PARSERS, agent_class
from gaelp_tasks.tasks.known import answer_name, code_of, may_repeat, read_answer, written
from gaelp_tasks.tasks.resources import Resources

__all__ = ["KnownAnswer"]


class KnownAnswer:
    """The entry of one invocation in the cache; none where it may not be cached."""

    def __init__(self, asked: Invocation, at: Resources) -> None:
        wanted = at.settings.cache_answers if asked.cache is None else asked.cache
        self._asked = asked
        self._at = at
        self._wanted = wanted and may_repeat(asked)
        self._model = self._digest = self._name = ""

    async def recall(self, model: str) -> dict[str, Any] | None:
        """`text`, `tool_calls` and `data` of the answer; None where it is not known, or must not be taken."""
        if not self._wanted:
            return None
        self._model, self._digest = model, await self._at.digests.of(model)
        digests = [self._digest]
        if self._asked.documents:  # which passages it rests on depends on the model that embeds them
            digests.append(await self._embedding_digest())
        if not all(digests):
            return None
        self._name = answer_name(
            self._asked, digests=digests, code=self._code(), context=self._at.cache_context()
        )
        [found] = await self._at.cache.recall([self._name])
        return read_answer(found)

    async def keep(self, result: InvocationResult) -> None:
        """Remember a whole answer, if the model is still the one that was looked up."""
        since = self._at.tick()
        if self._name and await self._at.digests.is_still(
            self._digest, self._model, result.node, since=since
        ):
            await self._at.cache.keep({self._name: written(result)})

    async def _embedding_digest(self) -> str:
        try:
            return await self._at.digests.of(await self._at.client.resolve(None, embeds=True))
        except NodeError:
            return ""

    def _code(self) -> list[str]:
        settings = self._at.settings
        things = [agent_class(self._asked.agent, settings)]
        if self._asked.parser:
            things.append(PARSERS.find(self._asked.parser, settings))
        return [code_of(thing) for thing in things]
