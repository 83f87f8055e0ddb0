"""The shortest history that still breaks the same invariant, as far as leaving out steps finds it."""

from collections.abc import Iterable

from gaelp_tasks.lifecycle import Invariant
from simulation.world import Verdict, simulate


def shrink(seed: int, steps: int, found: Verdict, *, most: int = 200) -> tuple[list[int], Verdict]:
    """Leave out ever smaller pieces while it still breaks; at most so many simulations."""
    assert found.broken is not None
    invariant: Invariant = found.broken.invariant
    tries = 0

    def breaks(keep: list[int]) -> Verdict | None:
        nonlocal tries
        tries += 1
        verdict = simulate(seed, steps, keep=set(keep))
        same = verdict.broken is not None and verdict.broken.invariant is invariant
        return verdict if same else None

    kept, best = list(range(found.steps)), found
    size = max(1, len(kept) // 2)
    while tries < most:
        at, left = 0, len(kept)
        while at < len(kept) and tries < most:
            without = kept[:at] + kept[at + size :]
            verdict = breaks(without)
            if verdict is None:
                at += size
            else:
                kept, best = [number for number in without if number < verdict.steps], verdict
        if size == 1 and len(kept) == left:
            break
        size = max(1, size // 2)
    return kept, best


def named(kept: Iterable[int]) -> str:
    """Numbers as people write them: 1,4-9."""
    parts: list[list[int]] = []
    for number in sorted(kept):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def numbers(text: str) -> set[int]:
    """The same back. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
