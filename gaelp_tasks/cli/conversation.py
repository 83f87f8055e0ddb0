"""A conversation as `gaelp chat` keeps it: what was said, and how much of it is sent again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["CUT_MARK", "Conversation", "Turn"]

#: what the model reads behind an answer of its own that was broken off
CUT_MARK = "[this answer was broken off here]"


@dataclass(frozen=True)
class Turn:
    """A question, and its answer."""

    question: str
    answer: str | None = None  #: None: there was none, because it failed or is still to come
    cut: bool = False  #: the answer is only its beginning

    @property
    def messages(self) -> list[dict[str, str]]:
        """Both as messages; a turn without an answer is not worth repeating."""
        if self.answer is None:
            return []
        said = f"{self.answer}\n{CUT_MARK}".lstrip() if self.cut else self.answer
        return [_message("user", self.question), _message("assistant", said)]


@dataclass(frozen=True)
class Conversation:
    """Everything said so far, oldest first; immutable."""

    system: str = ""
    turns: tuple[Turn, ...] = field(default=())

    def asked(self, question: str) -> "Conversation":
        """With one more question."""
        return replace(self, turns=(*self.turns, Turn(question)))

    def answered(self, answer: str, *, cut: bool = False) -> "Conversation":
        """With the answer to the last question."""
        return replace(self, turns=(*self.turns[:-1], replace(self.turns[-1], answer=answer, cut=cut)))

    def without_last(self) -> "Conversation":
        """As it was before the last question."""
        return replace(self, turns=self.turns[:-1])

    def messages(self, limit_bytes: int) -> list[dict[str, str]]:
        """What to send so that the last question can be answered.

        Whole turns are left out, the oldest first, until the rest fits `limit_bytes`; the system prompt and
        the last question always go along.
        """
        opening = [_message("system", self.system)] if self.system else []
        question = _message("user", self.turns[-1].question)
        room = limit_bytes - _size_bytes([*opening, question])
        kept: list[dict[str, str]] = []
        for turn in reversed(self.turns[:-1]):
            room -= _size_bytes(turn.messages)
            if room < 0:
                break
            kept = [*turn.messages, *kept]
        return [*opening, *kept, question]

    def left_out(self, limit_bytes: int) -> int:
        """How many answered turns `messages` leaves out."""
        answered = sum(turn.answer is not None for turn in self.turns[:-1])
        sent = sum(message["role"] == "assistant" for message in self.messages(limit_bytes))
        return answered - sent

    def as_json(self) -> dict[str, Any]:
        """For a file that a program reads."""
        turns = [{"question": turn.question, "answer": turn.answer, "cut": turn.cut} for turn in self.turns]
        return {"system": self.system, "turns": turns}

    def as_text(self) -> str:
        """For a file that a person reads, as Markdown."""
        parts = [f"**System:** {self.system}"] if self.system else []
        for turn in self.turns:
            answer = "*(no answer)*" if turn.answer is None else turn.answer
            parts += [f"**You:** {turn.question}", f"{answer} *(stopped)*" if turn.cut else answer]
        return "\n\n".join(parts) + "\n"


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _size_bytes(messages: Sequence[dict[str, str]]) -> int:
    """As JSON, which is a little more than what the limits count."""
    return sum(len(json.dumps(message, ensure_ascii=False).encode()) for message in messages)
