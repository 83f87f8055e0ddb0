"""What was where and when, from the notes of support.paging_server. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from gaelp_tasks.models.invocation import Tier

__all__ = ["Call", "Timeline", "Unload"]

STOP_S = 1.5  #: at most so long before a model is asked to go its runs were stopped for that
TOGETHER_S = 0.5  #: what goes within this time goes together


@dataclass
class Call:
    """A call that had a slot."""

    id: str
    model: str
    tier: str
    since: float
    until: float = inf
    cut: bool = False  #: its client left


@dataclass
class Stay:
    """A model's process."""

    model: str
    since: float
    asked_at: float = inf  #: to go
    until: float = inf


class Unload(NamedTuple):
    """A model that was asked to go."""

    stay: Stay
    cut: tuple[Call, ...]  #: for it

    @property
    def began(self) -> float:
        """When it was decided, as far as that shows."""
        return min([self.stay.asked_at, *(call.until for call in self.cut)])

    @property
    def back_s(self) -> float:
        """Until the process was gone, and with it its memory."""
        return self.stay.until - self.began


class Timeline:
    """Of one run."""

    def __init__(self, journal: Sequence[Mapping[str, Any]]) -> None:
        self.calls: list[Call] = []
        self.stays: list[Stay] = []
        for noted in journal:
            self._read(noted)
        self.unloads = [
            Unload(stay, tuple(self._cut_for(stay)))
            for stay in self.stays
            if stay.asked_at < inf and stay.until < inf
        ]

    def _read(self, noted: Mapping[str, Any]) -> None:
        at, model, call_id = noted["at"], noted["model"], noted.get("id")
        stay = next((stay for stay in reversed(self.stays) if stay.model == model), None)
        match noted["event"]:
            case "loading":
                self.stays.append(Stay(model, at))
            case "asked" if stay is not None and stay.until == inf:
                stay.asked_at = min(stay.asked_at, at)
            case "unloaded" | "died" if stay is not None:
                stay.until = at
            case "chat":
                self.calls.append(Call(call_id, model, noted["tier"], at))
            case "end" | "left" | "cut" as event:
                for call in reversed(self.calls):
                    if call.id == call_id and call.model == model and call.until == inf:
                        call.until, call.cut = at, event != "end"
                        break

    def _cut_for(self, stay: Stay) -> Iterator[Call]:
        """The last to leave before it was asked to go; who was preempted for another call is none of them."""
        before = [
            call
            for call in self.calls
            if call.model == stay.model and stay.since <= call.since < stay.asked_at
        ]
        latest = max((call.since for call in before), default=inf)
        for call in before:
            if call.cut and call.until >= latest and 0.0 <= stay.asked_at - call.until <= STOP_S:
                yield call

    def spared(self) -> int:
        """Unloads of a model of lower tiers, or an idle one, while an interactive run went on elsewhere."""
        return sum(
            any(
                call.tier == Tier.INTERACTIVE
                and call.model != unload.stay.model
                and call.since < unload.began
                and call.until > unload.began + TOGETHER_S
                for call in self.calls
            )
            for unload in self.unloads
            if all(call.tier != Tier.INTERACTIVE for call in unload.cut)
        )

    def wrong(self) -> Iterator[str]:
        """Interactive runs cut for an unload while a model of lower tiers, or an idle one, stayed."""
        for unload in self.unloads:
            if not any(call.tier == Tier.INTERACTIVE for call in unload.cut):
                continue
            for stay in self.stays:
                if stay is not unload.stay and self._would_do(stay, unload.began):
                    ids = ", ".join(call.id for call in unload.cut)
                    yield f"{unload.stay.model} with {ids} went, and {stay.model} stayed"

    def _would_do(self, stay: Stay, at: float) -> bool:
        """Whether it was there, did not go with the other, and had nothing interactive all the while."""
        there = stay.since < at - TOGETHER_S and stay.until > at + TOGETHER_S
        goes = stay.asked_at < at + TOGETHER_S
        spared_for = any(
            call.model == stay.model
            and call.tier == Tier.INTERACTIVE
            and call.since < at + TOGETHER_S
            and call.until > at - TOGETHER_S
            for call in self.calls
        )
        return there and not goes and not spared_for
