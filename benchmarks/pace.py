"""How a model server shares its time among requests: slots, prefill, decoding. Pure, on a clock it is given.

A slot's request first reads its prompt, at a rate of its own that disturbs nobody, and the end of that is its
first token. Then it writes at a rate that falls with the number of slots taken; one that still reads counts.
Who finds no slot waits in the order of arrival. Who leaves gives its slot back at its next token.
"""

from collections import deque
from dataclasses import dataclass

__all__ = ["Asking", "Made", "Slots"]


@dataclass(slots=True, eq=False)
class Asking:
    """One request; times are of the clock that the slots are given."""

    prompt_tokens: int  #: to be read
    tokens: int  #: to be written
    arrived_at: float = 0.0
    begun_at: float | None = None  #: it got its slot
    first_at: float | None = None  #: its prompt was read
    ended_at: float | None = None  #: it gave its slot back
    made: int = 0  #: tokens written
    gone: bool = False
    left: float = 0.0  #: tokens to read, then the part of the token at hand that is not written yet

    @property
    def whole(self) -> bool:
        """It has all that it asked for."""
        return self.made >= self.tokens and self.first_at is not None


@dataclass(frozen=True, slots=True)
class Made:
    """What a request has just got: a token, or nothing but its end."""

    asking: Asking
    number: int | None  #: of the token, from 0; None where it asked for none


class Slots:
    """The slots of one model; rates are in tokens per second."""

    def __init__(
        self, count: int = 4, *, alone: float = 150.0, full: float = 100.0, prefill: float = 2000.0
    ) -> None:
        self.made = 0  #: tokens written so far, for whomever
        self.taken: list[Asking] = []
        self.waiting: deque[Asking] = deque()
        self._count = count
        self._alone = alone
        self._full = full
        self._prefill = prefill
        self._now = 0.0

    @property
    def rate(self) -> float:
        """Of each that writes: on a line from one alone to all slots taken."""
        others = max(0, len(self.taken) - 1)
        return self._alone - (self._alone - self._full) * others / max(1, self._count - 1)

    def join(self, asking: Asking) -> None:
        """A request arrives at the time that the slots were last advanced to."""
        asking.arrived_at = self._now
        self.waiting.append(asking)
        self._fill()

    def leave(self, asking: Asking) -> None:
        """Whoever asked is gone."""
        asking.gone = True
        if asking in self.waiting:
            self.waiting.remove(asking)
            asking.ended_at = self._now

    def advance(self, now: float) -> list[Made]:
        """All that was written until then, in its order; however late one looks, the times are the same."""
        found = []
        while (soon := self._next()) is not None and soon[0] <= now:
            at, asking = soon
            self._move(at)
            found.append(self._got(asking))
        self._move(max(now, self._now))
        return found

    def next_at(self) -> float | None:
        """When the next token is written; None where nobody has a slot."""
        soon = self._next()
        return None if soon is None else soon[0]

    def _speed(self, asking: Asking) -> float:
        return self._prefill if asking.first_at is None else self.rate

    def _next(self) -> tuple[float, Asking] | None:
        if not self.taken:
            return None
        asking = min(self.taken, key=lambda asking: asking.left / self._speed(asking))
        return self._now + asking.left / self._speed(asking), asking

    def _move(self, to: float) -> None:
        passed = to - self._now
        for asking in self.taken:
            asking.left = max(0.0, asking.left - passed * self._speed(asking))
        self._now = to

    def _got(self, asking: Asking) -> Made:
        if asking.first_at is None:
            asking.first_at = self._now
        number = None
        if asking.made < asking.tokens:
            number = asking.made
            asking.made += 1
            self.made += 1
        asking.left = 1.0
        if asking.gone or asking.whole:
            asking.ended_at = self._now
            self.taken.remove(asking)
            self._fill()
        return Made(asking, number)

    def _fill(self) -> None:
        while self.waiting and len(self.taken) < self._count:
            asking = self.waiting.popleft()
            asking.begun_at = self._now
            asking.left = float(asking.prompt_tokens)
            self.taken.append(asking)
