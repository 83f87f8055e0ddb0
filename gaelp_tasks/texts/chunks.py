"""Cut a text into chunks that can be found again: each is `text[start:end]`, exactly."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Span", "chunks", "sentences"]

#: the blanks behind the end of a sentence or of a line, its only group that matched
BREAK = re.compile(r"(?<=[.!?…])[\"'”)\]]*(\s+)|(?<=[\u3002\uff01\uff1f])(\s*)|(\n+\s*)")
PARAGRAPH = re.compile(r"\n[ \t\r]*\n")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` up to `end` of a text."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """The characters themselves."""
        return text[self.start : self.end]


def sentences(text: str) -> list[Span]:
    """The sentences and lines that say something, without the blanks around them."""
    breaks = [found.span(found.lastindex or 0) for found in BREAK.finditer(text)]
    edges = [0, *(edge for pair in breaks for edge in pair), len(text)]
    spans = (_trimmed(text, start, end) for start, end in zip(edges[::2], edges[1::2], strict=True))
    return [span for span in spans if span is not None]


def chunks(text: str, *, size: int = 800, overlap: int = 100) -> list[Span]:
    """Chunks of at most `size` characters that end between sentences, better between paragraphs.

    Neighbours share whole sentences of up to `overlap` characters. A sentence longer than `size` is cut
    between words, and a word longer than that wherever it must. Every character that is no blank is in some
    chunk.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError("a chunk has at least one character, and its overlap is smaller than itself")
    units = [part for sentence in sentences(text) for part in _cut(text, sentence, size)]
    found: list[Span] = []
    first, last = 0, -1
    while last + 1 < len(units):
        last = _last_of_chunk(text, units, first, last + 1, size)
        found.append(Span(units[first].start, units[last].end))
        first = _next_first(units, first, last, overlap, size)
    return found


def _last_of_chunk(text: str, units: list[Span], first: int, least: int, size: int) -> int:
    """The unit with which the chunk of unit `first` ends: `least` or a later one."""
    start, last = units[first].start, least
    while last + 1 < len(units) and units[last + 1].end - start <= size:
        ends_paragraph = PARAGRAPH.search(text, units[last].end, units[last + 1].start) is not None
        if ends_paragraph and units[last].end - start >= size // 2:
            break
        last += 1
    return last


def _next_first(units: list[Span], first: int, last: int, overlap: int, size: int) -> int:
    """Go back over whole units of up to `overlap` characters, so far that the next unit fits behind them."""
    begin = following = last + 1
    if following == len(units):
        return following
    while begin - 1 > first and units[last].end - units[begin - 1].start <= overlap:
        begin -= 1
    while begin < following and units[following].end - units[begin].start > size:
        begin += 1
    return begin


def _cut(text: str, sentence: Span, size: int) -> Iterator[Span]:
    start = sentence.start
    while start < sentence.end:
        end = min(start + size, sentence.end)
        if end < sentence.end:  # a blank right behind the part is no part of it
            blank = max(text.rfind(" ", start, end + 1), text.rfind("\n", start, end + 1))
            end = blank if blank > start else end
        if (part := _trimmed(text, start, end)) is not None:
            yield part
        start = end
        while start < sentence.end and text[start].isspace():
            start += 1


def _trimmed(text: str, start: int, end: int) -> Span | None:
    inside = text[start:end]
    if not (kept := inside.strip()):
        return None
    start += inside.index(kept)
    return Span(start, start + len(kept))
