"""The marks by which an answer points to its sources, [1] or [2, 3]: read as it streams, wrong ones dropped.

What is a mark, decided by what stands before it and inside it alone, so that it does not matter how the text
was cut into pieces:

- numbers of up to three digits from 1, separated by commas or semicolons, or a range: [1], [1, 3], [2-4];
- not in code: not between backticks on a line, nor in a fenced block;
- not glued to something that can be indexed: a digit, `_`, a closing bracket or quotation mark, a single
  letter as in a[1], a dotted name. Glued to a whole word, as in «blue[1]», it is a mark, for so models write.

A number without a source is taken out of its mark, and a mark that is left empty is taken out of the text,
with the blanks that it leaves over. Only what may become a mark is held back, and the blanks before it.
"""

import re
from collections.abc import Container
from dataclasses import dataclass

__all__ = ["MarkReader"]

NUMBER = r"\d{1,3}(?:\s*[-–]\s*\d{1,3})?"  # noqa: RUF001  models write both dashes
MARK = re.compile(rf"\[\s*{NUMBER}(?:\s*[,;]\s*{NUMBER})*\s*\]")
PART = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?")  # noqa: RUF001  both dashes
INSIDE = frozenset("0123456789,;-– \t")  # noqa: RUF001  both dashes
LONGEST = 60  #: characters of a mark
BLANKS = " \t"
CLOSING = frozenset(".,;:!?)\n")  #: no blank is left before these where a mark was dropped
GLUED = frozenset("_)]}\"'`^\\")  #: before an index
NAME_GOES_ON = "._0123456789$@"  #: what stands before a word that is the end of a name
SEEN = 80  #: characters of a line that are remembered
FENCE = 3  #: marks in a row that open a block


class MarkReader:
    """Feed it the pieces of an answer; it gives back the text without wrong marks, as it is settled."""

    def __init__(self, numbers: Container[int]) -> None:
        self.cited: dict[int, None] = {}  #: in the order of their first mark
        self._numbers = numbers
        self._held = ""  #: blanks, then perhaps the beginning of a mark
        self._line = ""  #: the end of the settled text on this line
        self._after_mark = False
        self._dropped = False  #: a mark was dropped where `_held` begins
        self._code = _Code()

    def feed(self, piece: str) -> str:
        """The text that this piece settles."""
        return "".join([self._take(char) for char in piece])

    def end(self) -> str:
        """What was held back: an unfinished mark is text, the blanks of a dropped one are not."""
        held, self._held = self._held, ""
        return "" if self._dropped and "[" not in held else held

    def _take(self, char: str) -> str:
        if "[" in self._held:
            return self._inside(char)
        if char in BLANKS:
            if not self._dropped:
                self._held += char
            elif self._line:
                self._held = self._held or char
            return ""
        if self._dropped and char in CLOSING:
            self._held = ""
        self._dropped = False
        if char == "[" and self._may_open():
            self._held += char
            return ""
        held, self._held = self._held, ""
        return self._settled(held + char)

    def _inside(self, char: str) -> str:
        """One more character of what may be a mark."""
        whole = self._held + char
        if char == "]" and MARK.fullmatch(whole.lstrip(BLANKS)):
            return self._complete(whole)
        if char in INSIDE and len(whole) < LONGEST:
            self._held = whole
            return ""
        held, self._held = self._held, ""
        return self._settled(held) + self._take(char)

    def _complete(self, whole: str) -> str:
        """Keep of a mark what points to a source."""
        mark = whole.lstrip(BLANKS)
        blanks = whole[: len(whole) - len(mark)]
        told = [number for part in PART.finditer(mark) for number in _numbers(part)]
        kept = [number for number in told if number in self._numbers]
        self._held = ""
        if 0 in told:
            return self._settled(whole)
        self.cited |= dict.fromkeys(kept)
        if kept:
            text = self._settled(whole if told == kept else f"{blanks}[{', '.join(map(str, kept))}]")
        else:
            self._held = blanks if self._line else ""
            self._dropped = True
            text = ""
        self._after_mark = True
        return text

    def _settled(self, text: str) -> str:
        for char in text:
            self._code.add(char)
            self._line = "" if char == "\n" else (self._line + char)[-SEEN:]
        self._after_mark = False
        return text

    def _may_open(self) -> bool:
        if self._code.inside:
            return False
        if self._held or self._after_mark or not self._line:
            return True
        before = self._line[-1]
        if before in GLUED or before.isnumeric():
            return False
        if not before.isalpha():
            return True
        rest = self._line.rstrip("".join({char for char in self._line if char.isalpha()}))
        return len(self._line) - len(rest) > 1 and rest[-1:] not in tuple(NAME_GOES_ON)


@dataclass(slots=True)
class _Code:
    """Follows a text character by character, and knows whether it is in code."""

    run: str = ""  #: of ` or ~ that is being read
    run_opens_line: bool = False
    open: str = ""  #: the run that opened the code in which we are; '' outside
    opens_block: bool = False  #: that run opened its line, which is not over yet
    block: bool = False
    level: int = 0  #: blocks inside the block
    fence: bool = False  #: this line of the block begins like a fence
    rest: bool = False  #: and goes on
    blank: bool = True  #: nothing on this line yet

    @property
    def inside(self) -> bool:
        """Whether a character that came next, other than ` and ~, would be in code."""
        if not self.run:
            return bool(self.open)
        if not self.open:
            return self.run[0] == "`" or self._is_fence()
        return self.block or self.run != self.open

    def add(self, char: str) -> None:
        """One more character."""
        if self.run and char != self.run[0]:
            self._end_run()
        if char in "`~":
            self.run_opens_line = self.blank if not self.run else self.run_opens_line
            self.run += char
            self.blank = False
        elif char == "\n":
            self._end_line()
        elif char not in BLANKS:
            self.blank, self.rest = False, True

    def _is_fence(self) -> bool:
        return self.run_opens_line and len(self.run) >= FENCE

    def _end_run(self) -> None:
        run, self.run = self.run, ""
        is_fence = self.run_opens_line and len(run) >= FENCE
        if not self.open:
            if run[0] == "`" or is_fence:
                self.open, self.opens_block, self.level = run, is_fence, 0
        elif not self.block:
            self.open = "" if run == self.open else self.open
        elif is_fence and run[0] == self.open[0] and len(run) >= len(self.open):
            self.fence, self.rest = True, False
        else:
            self.rest = True

    def _end_line(self) -> None:
        if self.open and not self.block:  # a span ends with its line, a block begins
            self.block = self.opens_block
            self.open = self.open if self.block else ""
        elif self.fence:
            self.level += 1 if self.rest else -1
            if self.level < 0:
                self.open, self.block = "", False
        self.fence, self.rest, self.blank = False, False, True


def _numbers(part: "re.Match[str]") -> list[int]:
    first, last = int(part[1]), int(part[2] or part[1])
    return list(range(first, last + 1)) if first <= last else [first, last]
