"""How an earlier claim of an invocation ended, where it did: the end of its stream is the settlement.

A worker may die after it has told the answer and before the message is acknowledged. The next claim finds
the end, and tells the same again, to Celery too, without calling the model. One that is late cannot add an
end any more: the next claim's start is in the stream by the time it looks.
"""

from typing import Any

from gaelp_tasks import errors
from gaelp_tasks.models.invocation import InvocationResult
from gaelp_tasks.retries import Cut, Done, Failed, Outcome
from gaelp_tasks.streams import LAST_NUMBER, End, Piece, Start, TokenStream, parse
from gaelp_tasks.tasks.resources import Resources

__all__ = ["earlier_end", "facts_of", "told_before"]


def facts_of(outcome: Done | Cut | Failed) -> dict[str, Any]:
    """What the end of a stream says of an outcome; the text itself is in the stream already."""
    if isinstance(outcome, Failed):
        return {"outcome": "failed", "error": type(outcome.error).__name__, "message": str(outcome.error)}
    result = outcome.result
    facts = {
        "outcome": "done" if isinstance(outcome, Done) else "cut",
        "stop_reason": result.stop_reason,
        "usage": result.usage.model_dump(),
    }
    if isinstance(result, InvocationResult):
        facts["result"] = result.model_dump(mode="json", exclude={"text"})
    return facts


async def told_before(stream: TokenStream, at: Resources, *, resumes: bool = False) -> Outcome | None:
    """The outcome of an earlier claim; None where there was none, or it has to be found out again.

    Where this claim `resumes` its readers go on from the earlier text, so that is not written once more.
    Raises StreamFenced when a later claim has taken over.
    """
    if stream.claim == 1:
        return None
    await stream.arrived()
    end = await earlier_end(stream, at)
    if end is None:
        return None
    facts = end.facts
    if "result" in facts:
        text = await _text(stream, end.claim, at)
        if not resumes:
            stream.write(text, tokens=0)
        result = InvocationResult.model_validate(facts["result"] | {"text": text})
        return Done(result) if facts["outcome"] == "done" else Cut(result)
    error = getattr(errors, facts.get("error", ""), None)
    return Failed(error(facts["message"])) if error is not None else None


async def earlier_end(stream: TokenStream, at: Resources) -> End | None:
    """The newest end; a claim after it may have died while it told the same again."""
    claim = stream.claim
    while True:
        before: Any = await at.redis.xrevrange(stream.key, max=f"({claim}-0", count=1)
        if not before:
            return None
        event = parse(*before[0])
        if isinstance(event, End):
            return event
        claim = event.claim


async def _text(stream: TokenStream, claim: int, at: Resources) -> str:
    """What was told in that claim, and in those that it went on from."""
    begun: Any = await at.redis.xrange(stream.key, min=f"{claim}-0", max=f"{claim}-0")
    start = parse(*begun[0]) if begun else None
    first = start.first if isinstance(start, Start) else claim
    entries: Any = await at.redis.xrange(stream.key, min=f"{first}-0", max=f"{claim}-{LAST_NUMBER}")
    events = [parse(*entry) for entry in entries]
    return "".join(event.text for event in events if isinstance(event, Piece))
