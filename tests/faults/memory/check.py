"""What a record shows, and which promises it breaks. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from faults.memory.record import Moment, Record
from faults.memory.timeline import Timeline
from faults.memory.trace import RESERVE_BYTES

__all__ = ["BACK_S", "Findings", "broken", "check"]

BACK_S = 2.0  #: within which memory is to be back


@dataclass(frozen=True, kw_only=True)
class Findings:
    """One run in figures."""

    seed: int
    kills: int
    died: int  #: runners that somebody else than the server has ended
    asked: int
    unfinished: tuple[str, ...]  #: invocations without their whole text, each with what they had
    spent: tuple[str, ...]  #: invocations that an eviction has cost an attempt
    evicted: frozenset[str]  #: ids of invocations that were cut because memory was short
    unloads: int
    loads: int
    spared: (
        int  #: unloads of a model of lower tiers, or an idle one, while an interactive run went on elsewhere
    )
    wrong: tuple[str, ...]  #: interactive runs that were unloaded while others would have done
    slowest_back_s: float  #: from the first run that was cut for an unload to the end of the model's process
    longest_below_s: float  #: below the reserve
    least_free_bytes: int
    took_s: float


def check(record: Record) -> Findings:
    """What it shows."""
    line = Timeline(record.journal)
    cut = (decision["cut"] for decision in record.decisions if decision["decision"] == "unload")
    return Findings(
        seed=record.seed,
        kills=record.kills,
        died=sum(noted["event"] == "died" for noted in record.journal),
        asked=len(record.expected),
        unfinished=tuple(_unfinished(record)),
        spent=tuple(name for name, told in record.answers.items() if told["attempts"] != 1),
        evicted=frozenset(name for names in cut for name in names),
        unloads=len(line.unloads),
        loads=sum(noted["event"] == "loading" for noted in record.journal),
        spared=line.spared(),
        wrong=tuple(line.wrong()),
        slowest_back_s=max((unload.back_s for unload in line.unloads), default=0.0),
        longest_below_s=longest_below_s(record.moments, RESERVE_BYTES),
        least_free_bytes=min((moment.free_bytes for moment in record.moments), default=0),
        took_s=record.took_s,
    )


def _unfinished(record: Record) -> Iterator[str]:
    for name, text in record.expected.items():
        told = record.answers.get(name)
        if told is None:
            yield f"{name}: {record.failures.get(name, 'no answer')}"
        elif (told["text"].strip(), told["stop_reason"]) != (text.strip(), "stop"):
            words, wanted = len(told["text"].split()), len(text.split())
            yield f"{name}: {words} of {wanted} tokens, {told['stop_reason']}"


def longest_below_s(moments: Sequence[Moment], line_bytes: int) -> float:
    """The longest time in one piece that less than this was free."""
    longest, since = 0.0, None
    for moment in moments:
        if moment.free_bytes >= line_bytes:
            since = None
            continue
        since = moment.at if since is None else since
        longest = max(longest, moment.at - since)
    return longest


def broken(found: Findings, within_s: float = BACK_S) -> list[str]:
    """A sentence for each broken promise; memory is to be back `within_s`."""
    told = [
        (found.kills > 0, f"the kernel has killed {found.kills} for memory"),
        (found.died > found.kills, f"{found.died} runners died"),
        (bool(found.unfinished), f"without their whole answer: {'; '.join(found.unfinished)}"),
        (bool(found.spent), f"an attempt was spent: {', '.join(found.spent)}"),
        (bool(found.wrong), f"interactive runs gave way first: {'; '.join(found.wrong)}"),
        (found.slowest_back_s > within_s, f"memory was back after {found.slowest_back_s:.2f} s only"),
        (found.longest_below_s > within_s, f"below the reserve for {found.longest_below_s:.2f} s"),
    ]
    return [f"seed {found.seed}: {sentence}" for is_so, sentence in told if is_so]
