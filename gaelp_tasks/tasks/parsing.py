"""What becomes `data["parsed"]`: the answer's text as a parser or its own format understands it."""

from collections.abc import Callable
from typing import Any

from gaelp_tasks.errors import AnswerUnfit
from gaelp_tasks.models.frozen import JsonObject
from gaelp_tasks.models.invocation import Invocation
from gaelp_tasks.models.shape import as_json, read_json
from gaelp_tasks.threads import in_thread

__all__ = ["parsed"]


async def parsed(
    text: str, asked: Invocation, parser: Callable[[str], Any] | None, *, whole: bool
) -> JsonObject:
    """`{"parsed": value}`; empty without parser and format, and where the JSON asked for did not come.

    A parser is given the whole text, in a thread. Raises AnswerUnfit where it refuses a whole answer; from
    one that was cut nobody expects anything.
    """
    try:
        if parser is not None:
            return {"parsed": as_json(await in_thread(parser, text))}
        return {} if asked.format is None else {"parsed": read_json(text)}
    except Exception as error:
        if parser is None or not whole:
            return {}
        raise AnswerUnfit(
            f"The parser '{asked.parser}' cannot take the answer ({type(error).__name__}); "
            "the text is in the stream."
        ) from error
