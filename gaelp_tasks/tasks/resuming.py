"""Going on from the text that an earlier claim left in the stream, where that is exact.

Exact is what one plain call of a model makes, by the same agent and the same model, if that model writes the
same text when it is cut and asked to go on: each is asked that once, and Redis keeps what came of it. The
start of a run tells its readers whether it resumes, so that is decided before; the text is read after it,
when nothing of the claim before can be added any more. Where it then turns out that the text cannot be gone
on from, the run says so in its pause, is given back, and its next claim starts over.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.clients.base import BaseOllamaClient
from gaelp_tasks.errors import GaelpError, NodeError, RequestRefused
from gaelp_tasks.footprints import OLLAMAS_CONTEXT
from gaelp_tasks.models import Message
from gaelp_tasks.models.invocation import Invocation
from gaelp_tasks.registry import agent_class
from gaelp_tasks.streams import Event, Pause, Piece, Start, TokenStream, parse
from gaelp_tasks.tasks.known import code_of
from gaelp_tasks.tasks.resources import Resources
from gaelp_tasks.tasks.settlement import earlier_end

__all__ = [
    "CannotResume",
    "Earlier",
    "Way",
    "continued",
    "fits",
    "is_plain",
    "learn",
    "look_back",
    "options_left",
    "probe",
    "take_up",
]

CHOICE_S = 0.5  #: for a node to say which model it chooses, before the start is told without
BYTES_PER_TOKEN = 3  #: of a prompt; real ones have about four, and too little is the safe side
CODE_CHARS = 16  #: of the agent's fingerprint that tell it from others
KNOWN_S = 7 * 86_400  #: how long Redis keeps what a probe found; the server may be another version then

QUESTION = "Count from one to forty, each number in words on a line of its own."
TOKENS = 24  #: of a probe's whole answer
CUTS = (8, 13)  #: pieces that its continuations are given: of short lines, one ends in a line break


class CannotResume(GaelpError):
    """The text in the stream cannot be gone on from after all: the next claim starts over."""


class Way(NamedTuple):
    """What makes an answer; a run goes on only from one that was made in the same way."""

    model: str
    digest: str  #: of the model, on all nodes of the worker
    code: str  #: fingerprint of the agent's


@dataclass(frozen=True, slots=True)
class Earlier:
    """What the claims before have left in the stream."""

    first: int  #: claim in which the text begins
    text: str
    tokens: int
    last: str  #: id of the last entry that was looked at


# --- when ---------------------------------------------------------------------------------


def is_plain(asked: Invocation) -> bool:
    """Whether the answer is one text that depends on nothing but what was written so far. Pure."""
    options = asked.options or {}
    if asked.format is not None or asked.think is not None or asked.mode is not None:
        return False
    if asked.tools or asked.documents or any(message.images for message in asked.input):
        return False
    if asked.input[-1].tool_calls or asked.input[-1].thinking:
        return False
    limit = options.get("num_predict")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
        return False
    # with a seed and chance, the dice would fall as at the beginning
    return options.get("seed") is None or options.get("temperature") == 0


def fits(asked: Invocation, earlier: Earlier, agent: type[BaseAgent], num_ctx: int) -> bool:
    """Whether prompt and text surely fit into the context: beyond it a server drops what is oldest. Pure.

    A piece of text is one token, but for a character that had to be made of several: of its bytes at most.
    """
    prompt_bytes = sum(message.size_bytes for message in asked.input)
    prompt_bytes += len((agent.system_prompt or "").encode())
    tokens = earlier.tokens + len(earlier.text.encode()) - len(earlier.text)
    return prompt_bytes / BYTES_PER_TOKEN + tokens < (num_ctx or OLLAMAS_CONTEXT)


def _agent(asked: Invocation, at: Resources) -> type[BaseAgent] | None:
    """The agent, if its own class says that it can go on; a subclass may do more, and says so itself."""
    with suppress(GaelpError):
        found = agent_class(asked.agent, at.settings)
        if isinstance(found, type) and issubclass(found, BaseAgent) and vars(found).get("resumable"):
            return found
    return None


@cache
def _code(agent: Any) -> str:
    return code_of(agent)[:CODE_CHARS]


async def look_back(stream: TokenStream, asked: Any, at: Resources) -> tuple[Way | None, Earlier | None]:
    """How this claim will answer, None where a later one could not go on; and what it goes on from itself.

    Asked before the start is written. What is found may still grow, see `take_up`.
    """
    if not isinstance(asked, Invocation) or not is_plain(asked):
        return None, None
    agent = _agent(asked, at)
    if agent is None:
        return None, None
    left = await _left(stream, at) if stream.claim > 1 else None
    before = _way_of(left[0]) if left else None
    way = await _way(asked, agent, before, at)
    if left is None or way is None or before is None or way[1:] != before[1:]:
        return way, None
    start, events = left
    earlier = _read(Earlier(start.first, "", 0, start.id), events)
    if earlier is None or not earlier.text or not fits(asked, earlier, agent, at.settings.num_ctx):
        return way, None
    return way, None if await at.redis.get(at.keys.continues(way.digest)) == "no" else earlier


async def _way(asked: Invocation, agent: Any, before: Way | None, at: Resources) -> Way | None:
    """A run that names no model stays with the one that began its text."""
    model = asked.model or at.settings.default_model or (before.model if before else "")
    if not model:
        with suppress(NodeError, TimeoutError):
            async with asyncio.timeout(CHOICE_S):
                model = await at.client.resolve(None)
    told = None if before else at.digests.told(model)
    digest = await at.digests.of(model) if told is None else told
    return Way(model, digest, _code(agent)) if model and digest else None


def _way_of(start: Start) -> Way | None:
    with suppress(TypeError):  # of another release
        return Way(**start.facts["way"]) if "way" in start.facts else None
    return None


async def _left(stream: TokenStream, at: Resources) -> tuple[Start, list[Event]] | None:
    """The start of the run before, and every entry of the text that it belongs to; None where none is left.

    A text that was told to its end is not left: it is told again.
    """
    if await earlier_end(stream, at) is not None:
        return None
    newest: Any = await at.redis.xrevrange(stream.key, max=f"({stream.claim}-0", count=1)
    if not newest:
        return None
    number_0 = f"{parse(*newest[0]).claim}-0"
    begun: Any = await at.redis.xrange(stream.key, min=number_0, max=number_0)
    start = parse(*begun[0]) if begun else None
    if not isinstance(start, Start):
        return None
    return start, await _entries(stream, f"{start.first}-0", at)


async def _entries(stream: TokenStream, begin: str, at: Resources) -> list[Event]:
    found: Any = await at.redis.xrange(stream.key, min=begin, max=f"({stream.claim}-0")
    return [parse(*entry) for entry in found]


def _read(so_far: Earlier, events: Sequence[Event]) -> Earlier | None:
    """With these entries; None where a model cannot go on from them.

    It cannot where it thought, where the text is none that it wrote (an answer from the cache), or where
    bytes were lost of a character that was cut.
    """
    texts, tokens = [so_far.text], so_far.tokens
    for event in events:
        match event:
            case Piece(text=text, thinking=thinking, tokens=count):
                if thinking or (text and not count) or "\ufffd" in text:
                    return None
                texts.append(text)
                tokens += count
            case Pause(facts=facts) if facts.get("over"):
                return None
            case Start() as start if start.first != so_far.first:  # a claim that did not go on from this text
                return None
    last = events[-1].id if events else so_far.last
    return replace(so_far, text="".join(texts), tokens=tokens, last=last)


async def take_up(stream: TokenStream, earlier: Earlier, at: Resources) -> Earlier:
    """With what came until the start of this claim was written. Raises CannotResume."""
    found = _read(earlier, await _entries(stream, f"({earlier.last}", at))
    if found is None:
        raise CannotResume("The text in the stream cannot be gone on from: it starts over.")
    return found


# --- how ----------------------------------------------------------------------------------


def continued(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The conversation with the text as the beginning of the answer, as Ollama takes it. Pure."""
    *before, last = messages
    if last.role == "assistant":
        return (*before, last.model_copy(update={"content": last.content + text}))
    return (*messages, Message(role="assistant", content=text))


def options_left(options: Mapping[str, Any], tokens: int) -> dict[str, Any] | None:
    """The model options for what is still to come; None where `num_predict` leaves nothing. Pure."""
    limit = options.get("num_predict")
    if not isinstance(limit, int) or limit <= 0:  # Ollama's words for no limit
        return dict(options)
    return {**options, "num_predict": limit - tokens} if limit > tokens else None


# --- whether a model can ------------------------------------------------------------------


async def learn(at: Resources, way: Way, client: BaseOllamaClient) -> bool:
    """Whether the model goes on exactly; it is asked where nobody knows. Raises as redis-py does, NodeError.

    A run asks on its own slot, when it first has a text to go on from: nobody else waits for that, and it
    costs fewer tokens than starting over would.
    """
    key = at.keys.continues(way.digest)
    known = await at.redis.get(key)
    if known is None:
        known = "yes" if await probe(client, way.model) else "no"
        await at.redis.set(key, known, ex=KNOWN_S)
    return bool(known == "yes")


async def probe(client: BaseOllamaClient, model: str) -> bool:
    """Cut an answer at two places and let the model go on: whether the text is the same. Raises NodeError."""
    asked = (Message(role="user", content=QUESTION),)
    try:
        whole = await _say(client, model, asked, TOKENS)
        if len(whole) <= max(CUTS):
            return False
        for cut in CUTS:
            head = "".join(whole[:cut])
            rest = await _say(client, model, continued(asked, head), TOKENS - cut)
            if head + "".join(rest) != "".join(whole):
                return False
    except RequestRefused:
        return False
    return True


async def _say(client: BaseOllamaClient, model: str, messages: tuple[Message, ...], tokens: int) -> list[str]:
    """The pieces of an answer; none from a model that thinks first."""
    pieces: list[str] = []
    answer = client.chat(messages, model=model, temperature=0, seed=1, num_predict=tokens)
    async with aclosing(answer) as chunks:
        async for chunk in chunks:
            if chunk.thinking:
                return []
            if chunk.content:
                pieces.append(chunk.content)
    return pieces
