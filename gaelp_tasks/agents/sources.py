"""From documents to numbered sources: cut, choose, put into the prompt, find behind a sentence. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import mul

from gaelp_tasks.models import Document, Message
from gaelp_tasks.models.frozen import JsonObject
from gaelp_tasks.texts.chunks import Span, chunks

__all__ = ["Source", "Vector", "behind", "best", "cut", "similarity", "with_sources"]

Vector = Sequence[float]

TASK = """\
Answer from these sources. After each statement put the number of the source that it rests on in brackets, \
as in [1]. Put code between backticks. Where the sources do not hold the answer, say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A chunk of a document; `documents[document].text[start:end]` is its text."""

    number: int  #: by which an answer cites it, from 1; 0 before it is chosen
    document: int  #: place in the list that was given, from 0
    title: str
    source: str
    span: Span
    text: str

    def data(self, by: str) -> JsonObject:
        """As it stands in `data["citations"]`."""
        return {
            "number": self.number,
            "document": self.document,
            "title": self.title,
            "source": self.source,
            "start": self.span.start,
            "end": self.span.end,
            "text": self.text,
            "by": by,
        }


def cut(documents: Sequence[Document], *, size: int, overlap: int) -> list[Source]:
    """The chunks of all documents, in their order, numbered."""
    pieces = [
        (at, document, span)
        for at, document in enumerate(documents)
        for span in chunks(document.text, size=size, overlap=overlap)
    ]
    return [
        Source(
            number=number,
            document=at,
            title=document.title,
            source=document.source,
            span=span,
            text=span.of(document.text),
        )
        for number, (at, document, span) in enumerate(pieces, start=1)
    ]


def best(sources: Sequence[Source], scores: Sequence[float], *, most: int, budget: int) -> list[Source]:
    """The sources that score best, at most `most` and at least one, of up to `budget` characters together.

    They keep their order and are numbered anew.
    """
    chosen: set[int] = set()
    left = budget
    for at in sorted(range(len(sources)), key=lambda at: (-scores[at], at)):
        size = len(sources[at].text)
        if len(chosen) < most and (size <= left or not chosen):
            chosen.add(at)
            left -= size
    return [replace(sources[at], number=number) for number, at in enumerate(sorted(chosen), start=1)]


def with_sources(messages: Sequence[Message], sources: Iterable[Source]) -> tuple[Message, ...]:
    """The conversation with the sources put before its last question."""
    told = "\n\n".join(
        f"[{source.number}] " + (f"{source.title}\n" if source.title else "") + source.text
        for source in sources
    )
    at = asked_at(messages)
    question = messages[at]
    full = question.model_copy(update={"content": f"{told}\n\n{TASK}\n\nQuestion: {question.content}"})
    return (*messages[:at], full, *messages[at + 1 :])


def asked_at(messages: Sequence[Message]) -> int:
    """The place of the last question."""
    users = [at for at, message in enumerate(messages) if message.role == "user"]
    return users[-1] if users else len(messages) - 1


def similarity(one: Vector, other: Vector) -> float:
    """The cosine of the angle between two vectors; 0 where one has no length."""
    lengths = math.sqrt(sum(map(mul, one, one)) * sum(map(mul, other, other)))
    return sum(map(mul, one, other)) / lengths if lengths else 0.0


def behind(said: Iterable[Vector], sources: Sequence[Vector], *, at_least: float) -> list[int]:
    """Places of the sources that are nearest to what was said, each once, in the order of saying."""
    found: dict[int, None] = {}
    for vector in said:
        scores = [similarity(vector, source) for source in sources]
        nearest = max(range(len(scores)), key=scores.__getitem__, default=None)
        if nearest is not None and scores[nearest] >= at_least:
            found[nearest] = None
    return list(found)
