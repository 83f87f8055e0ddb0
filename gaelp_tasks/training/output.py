"""What a job prints: lines for its log, and among them its metrics."""

import json
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from gaelp_tasks.models.training import Stream

__all__ = ["Line", "Output", "Splitter", "metrics_of"]

METRICS = "GAELP_METRICS "  #: how a line begins that tells metrics as a JSON object
LONGEST = 8 * 1024  #: bytes of a line; the rest of a longer one is left out
MOST_LINES = 2000  #: kept from one write to the next; of a flood the newest
MOST_METRICS = 200  #: the same


class Line(NamedTuple):
    """One line as the log keeps it."""

    stream: Stream
    at: datetime
    text: str


class Splitter:
    """Lines out of pieces of bytes, in memory bounded by `LONGEST`."""

    def __init__(self) -> None:
        self._rest = b""
        self._skips = False  # until the end of a line that was too long

    def feed(self, piece: bytes) -> list[str]:
        """The lines that are whole now."""
        *whole, rest = (self._rest + piece).split(b"\n")
        lines = []
        for line in whole:
            if not self._skips:
                lines.append(_text(line))
            self._skips = False
        if len(rest) > LONGEST:
            if not self._skips:
                lines.append(_text(rest))
            self._skips, rest = True, b""
        self._rest = rest
        return lines

    def end(self) -> list[str]:
        """What came behind the last line's end."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest and not self._skips else []


def _text(line: bytes) -> str:
    # no NUL: PostgreSQL keeps none
    return line[:LONGEST].rstrip(b"\r").decode("utf-8", "replace").replace("\0", "\ufffd")


def metrics_of(line: str) -> dict[str, Any] | None:
    """The metrics that a line tells; None where it tells none that can be read."""
    if not line.startswith(METRICS):
        return None
    try:
        told = json.loads(line.removeprefix(METRICS), parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


class Output:
    """What was printed and is not written yet; of a flood the newest, and how much was left out."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._lines: deque[Line] = deque(maxlen=MOST_LINES)
        self._metrics: deque[dict[str, Any]] = deque(maxlen=MOST_METRICS)
        self._dropped = 0
        self._now = now
        self.progress: float | None = None  #: 0 to 1, as last told
        self.step: int | None = None

    def add(self, stream: Stream, text: str) -> None:
        """A line; one of metrics is not for the log."""
        told = metrics_of(text) if stream is Stream.STDOUT else None
        if told is None:
            self._dropped += len(self._lines) == MOST_LINES
            self._lines.append(Line(stream, self._now(), text))
            return
        self._metrics.append(told)
        progress, step = told.get("progress"), told.get("step")
        if isinstance(progress, int | float) and not isinstance(progress, bool):
            self.progress = min(1.0, max(0.0, float(progress)))
        if isinstance(step, int) and not isinstance(step, bool) and abs(step) < 2**62:
            self.step = step

    def lines(self) -> list[Line]:
        """Take what has come."""
        taken, dropped = list(self._lines), self._dropped
        self._lines.clear()
        self._dropped = 0
        if dropped:
            taken.insert(0, Line(Stream.SYSTEM, taken[0].at, f"{dropped} lines were left out: too many."))
        return taken

    def back(self, lines: list[Line]) -> None:
        """They could not be written: before what has come since."""
        room = MOST_LINES - len(self._lines)
        kept = lines[-room:] if room else []
        self._dropped += len(lines) - len(kept)
        self._lines.extendleft(reversed(kept))

    def metrics(self) -> list[dict[str, Any]]:
        """Take what has come."""
        taken = list(self._metrics)
        self._metrics.clear()
        return taken
