"""The fenced code blocks of an answer, as Markdown has them and as models write them."""

import re
from dataclasses import dataclass

__all__ = ["CodeBlock", "blocks"]

FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*(.*?)[ \t]*\r?")
#: where an info string names the file, beside python:a.py, python a.py and a.py: python title="a.py"
NAMED = re.compile(r"""\b(?:title|file|filename|name|path)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s,}]+))""")
LANGUAGE = re.compile(r"\{?\.?([\w+#.-]*)")
FILE = re.compile(r"(?:[\w.-]+/)*[\w-][\w.-]*\.\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeBlock:
    """One block; its text is without the last line's end, and without the indentation of its fence."""

    language: str  #: as the fence says, in lower case; '' where it does not
    text: str
    name: str = ""  #: of the file, '' where the fence does not say

    def data(self) -> dict[str, str]:
        """As JSON; `name` only where there is one."""
        named = {"name": self.name} if self.name else {}
        return {"language": self.language, "text": self.text, **named}


@dataclass(frozen=True, slots=True)
class _Fence:
    indent: str
    mark: str  #: the run of ` or ~
    info: str

    def ends(self, opening: "_Fence") -> bool:
        return not self.info and self.like(opening)

    def nests(self, outer: "_Fence") -> bool:
        return bool(self.info) and self.like(outer)

    def like(self, other: "_Fence") -> bool:
        return self.mark[0] == other.mark[0] and len(self.mark) >= len(other.mark)


def blocks(text: str) -> list[CodeBlock]:
    """The blocks in their order; one that never ends, as in an answer that was cut, goes to the end.

    A block inside a block belongs to the outer one, also where both fences are equally long, as models
    write it: a fence that names a language opens a level, a bare one closes it.
    """
    found: list[CodeBlock] = []
    opening: _Fence | None = None
    inside: list[str] = []
    level = 0
    for line in text.split("\n"):
        fence = _fence(line)
        if opening is None:
            opening, inside, level = fence, [], 0
        elif fence is not None and fence.ends(opening) and level == 0:
            found.append(_block(opening, inside))
            opening = None
        else:
            if fence is not None and fence.like(opening):
                level += 1 if fence.nests(opening) else -1
            inside.append(line)
    if opening is not None:
        found.append(_block(opening, inside[:-1] if inside and not inside[-1] else inside))
    return found


def _fence(line: str) -> _Fence | None:
    found = FENCE.fullmatch(line)
    if found is None or (found[2][0] == "`" and "`" in found[3]):  # such a line is a span of code
        return None
    return _Fence(found[1], found[2], found[3])


def _block(opening: _Fence, lines: list[str]) -> CodeBlock:
    language, name = _info(opening.info)
    return CodeBlock(
        language=language, text="\n".join(_dedented(line, opening.indent) for line in lines), name=name
    )


def _dedented(line: str, indent: str) -> str:
    """Less the fence's own indentation, or as much of it as there is."""
    blank = len(line) - len(line.lstrip(" \t"))
    return line[min(blank, len(indent)) :]


def _info(info: str) -> tuple[str, str]:
    """Language and file name of an info string."""
    named = NAMED.search(info)
    name = next((value for value in named.groups() if value), "") if named else ""
    word, _, rest = info.partition(" ")
    if ":" in word:
        word, _, told = word.partition(":")
        name = name or told
    elif FILE.fullmatch(word) and not named:
        return word.rpartition(".")[2].lower(), word
    if not name and FILE.fullmatch(rest.strip()):
        name = rest.strip()
    found = LANGUAGE.match(word)
    return found[1].lower() if found and not word.startswith("title=") else "", name
